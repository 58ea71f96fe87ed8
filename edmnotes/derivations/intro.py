"""The introduction shows one equation and derives nothing: the noising formula, which ``forward`` takes up."""

DEFINITIONS = {"intro-noising": "the model of the whole book: two free functions"}
