"""The scenarios that come with Shoal."""
