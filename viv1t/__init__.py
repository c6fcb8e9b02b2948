"""Digital twins of mouse visual cortex: the ViV1T model, its training and its use."""

import pkgutil

# In an editable install the kernels live in another folder; this lets `viv1t.kernels` be found there.
__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"


def load_model(run_folder, device="cpu"):  # type: ignore[no-untyped-def]
    """The best model of a run folder, ours or a published one, in evaluation mode; needs no recordings.

    Args:
        run_folder: path of the run.
        device: where to put it.

    Returns:
        A `viv1t.model.twin.ViV1T`: `model(video, mouse_id=..., behavior=..., pupil_center=...)` gives (B, N, t).

    Raises:
        viv1t.errors.CheckpointError: no run there, or its checkpoint is damaged or does not fit its options.
    """
    from viv1t.train.run_folder import RunFolder  # torch is not needed to import the package itself

    return RunFolder(run_folder).load_model(device)
