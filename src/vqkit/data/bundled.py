"""Seven real photos that scikit-image and scikit-learn install with themselves."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vqkit.data.errors import DataError

# The package to import, what pip calls it, and the path inside.
TRAINING = {
    "astronaut": ("skimage", "scikit-image", "data/astronaut.png"),
    "coffee": ("skimage", "scikit-image", "data/coffee.png"),
    "rocket": ("skimage", "scikit-image", "data/rocket.jpg"),
    "hubble_deep_field": ("skimage", "scikit-image", "data/hubble_deep_field.jpg"),
    "china": ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "scikit-learn", "datasets/images/flower.jpg"),
}
HELD_OUT = {"chelsea": ("skimage", "scikit-image", "data/chelsea.png")}


def photo_path(module: str, distribution: str, inside: str) -> Path:
    """The file of one photo inside an installed package, which is located but not imported.

    `import sklearn` alone takes 1.6 s, and `skimage.data` would look for a missing photo in the network.

    Raises: ImportError where the package is not installed, `DataError` where its version ships no such file.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the bundled photos need {distribution}; run: pip install 'vqkit[train]'")
    path = Path(spec.submodule_search_locations[0], inside)
    if not path.is_file():
        raise DataError(
            f"{path}: the installed {distribution} lacks this photo; run: pip install --force-reinstall "
            f"{distribution}; or train on images of your own: vqkit train FOLDER"
        )
    return path
