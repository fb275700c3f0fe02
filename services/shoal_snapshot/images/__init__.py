"""Where templates come from, turned into read-only disks."""
