"""What turns a pure core into a process: the shell around it, the cluster's bootstrap, options, logs and signals."""
