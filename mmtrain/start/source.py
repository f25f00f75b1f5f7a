"""What `--init-from` names, read: a vision transformer on disk, or a model of ours."""

from pathlib import Path

from mmtrain.bundle import VOCABULARY, BundleError, find_bundle, load_bundle, load_card
from mmtrain.start.trained import Trained
from mmtrain.start.vit import InitError, Vit
from mmtrain.start.vit_files import is_vit, read_vit
from pipelines.vocabulary import Vocabulary


def read_source(
    uri: str, *, tracking_uri: str | None = None, only_shapes: bool = False
) -> Vit | Trained:
    """The weights that a URI names.

    Args:
        uri: a ViT checkpoint as `vit_files.py` says, a run or bundle folder, models:/NAME@ALIAS.
        tracking_uri: the registry, for `models:/`; None: as MLflow is set up.
        only_shapes: tensors without values, on torch's meta device, where that saves reading.

    Raises:
        InitError: nothing of the kind is there.
        BundleError: a bundle is damaged.
        RegistryError: there is no such version.
    """
    if uri.startswith("models:/"):
        from mmtrain.store.models import download_bundle  # imports MLflow: seconds

        bundle = download_bundle(uri, tracking_uri=tracking_uri)
        return Trained(bundle.card, bundle.state, bundle.vocabulary)
    path = Path(uri)
    if is_vit(path) and not (path / "bundle.json").is_file():
        return read_vit(path, only_shapes=only_shapes)
    try:
        folder = find_bundle(path)
    except BundleError as error:
        raise InitError(
            f"--init-from: {error}, a Hugging Face ViT folder, a timm .safetensors or an official "
            ".npz file"
        ) from None
    if not only_shapes:
        bundle = load_bundle(folder)
        return Trained(bundle.card, bundle.state, bundle.vocabulary)
    card, _ = load_card(folder)
    has_vocabulary = VOCABULARY in card.files
    vocabulary = Vocabulary.load(folder / VOCABULARY) if has_vocabulary else None
    return Trained(card, Trained(card, {}, None).meta_model().state_dict(), vocabulary)
