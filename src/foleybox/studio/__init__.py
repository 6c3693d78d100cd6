"""The studio: a library that renders and processes sounds with numpy and onnxruntime. It prints nothing and needs no torch."""
