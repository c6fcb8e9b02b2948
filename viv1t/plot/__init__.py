"""Figures: plain arrays in, a file out. Matplotlib is imported when something is drawn, and never through pyplot."""

from viv1t.plot.attention import attention_film_strip
from viv1t.plot.movie import movie_responses
from viv1t.plot.positions import readout_positions, receptive_fields
from viv1t.plot.responses import correlation_by_neuron, response_traces
from viv1t.plot.training import learning_curves

__all__ = [
    "attention_film_strip",
    "correlation_by_neuron",
    "learning_curves",
    "movie_responses",
    "readout_positions",
    "receptive_fields",
    "response_traces",
]
