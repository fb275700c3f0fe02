"""What a load test leaves: a record for programs, and a page for people."""
