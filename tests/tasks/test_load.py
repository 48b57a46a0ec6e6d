"""Test that `metamix.load` finds the task of a model, and refuses arguments that would have no effect."""

import pytest

import metamix

NAME = "metaformer_pooling_nano.digits"


def test_load_by_name_gives_a_classifier():
    trained = metamix.load(NAME)
    assert trained.metadata.classes == tuple("0123456789")
    assert not trained.model.training


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        (NAME, {"threads": 1}, ValueError, "threads is for exported models: call torch.set_num_threads instead"),
        (NAME, {"trust": True}, ValueError, "trust is for exported models, and no code in .*digits runs: leave it out"),
        ("metamaeformer_rafft_s12", {}, ValueError, "did you mean 'metaformer_raft_s12'"),
        ("metaformer_raft_nano.cifr10", {}, ValueError, "has no tag 'cifr10'; did you mean 'cifar10'"),
        ("no/such.safetensors", {}, FileNotFoundError, "there is no file no/such.safetensors"),
    ],
)
def test_load_refuses(source, arguments, error, message):
    with pytest.raises(error, match=message):
        metamix.load(source, **arguments)


def test_classifier_has_one_source():
    with pytest.raises(ValueError, match="pretrained and checkpoint .*digits.* both say where weights come from"):
        metamix.load_classifier(NAME, model="metaformer_pooling_nano", pretrained=True)
