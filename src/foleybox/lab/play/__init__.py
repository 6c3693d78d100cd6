"""Where trained parts of several systems meet: sampling from runs, scores while training, a vocoder's inputs."""
