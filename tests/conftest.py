"""What all tests share."""

from hypothesis import settings

# No deadline: how long an example takes says nothing here. The blob lets a failure be repeated elsewhere.
settings.register_profile("shoal", deadline=None, print_blob=True)
settings.load_profile("shoal")
