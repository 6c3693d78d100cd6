"""The studio: numpy and onnxruntime, never torch. A label and a seed become a sound."""
