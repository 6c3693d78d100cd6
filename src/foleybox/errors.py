"""The exception for mistakes of the user."""

LAB_PACKAGES = ("torch", "accelerate", "safetensors", "scipy", "matplotlib", "tensorboard", "onnx", "onnxscript")
SERVE_PACKAGES = ("fastapi", "starlette", "pydantic", "uvicorn")
INSTALL_SERVE = "in a checkout of foleybox, pip install -c constraints.txt '.[serve]'"
INSTALL_LAB = "in a checkout of foleybox, pip install -c constraints.txt '.[lab]'"


class UserError(ValueError):
    """A mistake that the user can correct. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with 2; in Python it is a `ValueError`. Characters of a user's
    file that end a line or cannot be printed are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))
