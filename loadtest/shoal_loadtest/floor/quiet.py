"""What drivers tell of what they find is of no interest beside a floor: only errors are, on standard error."""

import logging
import sys

import structlog


def quiet() -> None:
    """Have this process tell of errors only."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.ERROR)
