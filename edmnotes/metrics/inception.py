"""The network whose features published distances are computed in."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Inception:
    """Inception-v3 as the published FID, KID and Inception Score use it, from the package torch-fidelity.

    It has the interface of the judge: ``features`` and, called, logits. Its weights are no part of edmnotes, and
    nothing is downloaded: give the path of a file that is on the machine.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's releases. It is a pickle,
            which can run code: take it from there.
        device: where to compute.

    Raises:
        FileNotFoundError: if there is no such file; the message says what to do.
        ImportError: if torch-fidelity is not installed.
    """

    def __init__(self, weights: str | Path, *, device: torch.device | str = "cpu") -> None:
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"weights={str(weights)!r} is no file. The weights of Inception-v3 are not part of edmnotes and are "
                "never downloaded: fetch weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity "
                "and give its path, or measure digits in the features of edmnotes.judging.load()"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                f"Inception needs the package torch-fidelity (pip install 'edmnotes[inception]'): {error}"
            ) from error
        wanted = ["2048", "logits_unbiased"]
        self.device = torch.device(device)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", wanted, feature_extractor_weights_path=str(weights)
        ).to(self.device)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 2048"]:
        """Return the 2048 features under the last layer.

        Args:
            x: images in [-1, 1], of one channel or three; rounded to 256 levels as published numbers are.

        Raises:
            ValueError: if ``x`` has another shape.
        """
        return self.network(self._bytes(x))[0]

    def __call__(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the 1008 classes, without the last layer's offset, as the published score has them.

        Raises:
            ValueError: as :meth:`features`.
        """
        return self.network(self._bytes(x))[1]

    def _bytes(self, x: Tensor) -> UInt8[Tensor, "batch 3 height width"]:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, 1, H, W) or (B, 3, H, W)")
        levels = ((x.detach().to(self.device) + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).expand(-1, 3, -1, -1)
