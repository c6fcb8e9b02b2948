"""Digital twins of mouse visual cortex: the ViV1T model, its training and its use."""

import pkgutil

# In an editable install the kernels live in another folder; this lets `viv1t.kernels` be found there.
__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"
