"""Load tests: what Shoal does in a second, beside what its parts and its peers do."""
