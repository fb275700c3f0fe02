"""What is measured: latencies as HDR histograms, processes and streams once a second, and what it adds up to."""
