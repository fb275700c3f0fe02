"""What goes wrong with an image."""


class ImageError(Exception):
    """A source cannot be used; the text is one sentence for people that names it."""
