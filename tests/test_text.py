"Tokens and their embeddings: padding is silent, order matters, nothing is cut off unseen."
import pytest
import torch

from sora_edu.model.text import TextConfig, TextEncoder, load_tokenizer, tokenize, train_tokenizer, unknown_words
from sora_edu.world.captions import STYLES, caption
from sora_edu.world.scene import World

TOKENIZER = load_tokenizer()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextConfig()).eval()


def test_tokens_begin_and_are_padded():
    ids = tokenize(["a small red star", ""], TOKENIZER)
    assert ids.shape == (2, 24) and ids[:, 0].tolist() == [1, 1] and ids[1, 1:].sum() == 0
    assert (ids[0] > 0).sum() > (ids[1] > 0).sum() == 1


@pytest.mark.parametrize("text", ["a small red star", "snow ☃ and\ttabs", "日本語"])
def test_any_text_survives(text):
    ids = tokenize([text], TOKENIZER, 64)[0]
    assert TOKENIZER.decode(ids[1:][ids[1:] > 0].tolist()).strip() == text


def test_capitals_do_not_matter():
    assert torch.equal(tokenize(["A Big BLUE Box"], TOKENIZER), tokenize(["a big blue box"], TOKENIZER))


def test_every_caption_fits():
    scenes = World().sample(9, 300, "all")
    texts = [caption(s, style, seed, image) for s in scenes for style in STYLES for seed in (0, 1) for image in (False, True)]
    assert (tokenize(texts, TOKENIZER)[:, -1] == 0).all()


def test_too_long_is_an_error_and_not_a_cut():
    with pytest.raises(ValueError, match=r"^prompt: got \d+ tokens, allowed: at most 23"):
        tokenize(["very " * 30], TOKENIZER)


def test_padding_is_zero_and_changes_nothing(encoder):
    ids = tokenize(["a red ball rises"], TOKENIZER)
    n = int((ids > 0).sum())
    with torch.no_grad():
        full, short = encoder(ids), encoder(ids[:, :n])
    assert (full[:, n:] == 0).all() and (full[:, :n] - short).abs().max() < 1e-5 and short.abs().min(-1).values.max() > 0


def test_a_prompt_does_not_depend_on_its_batch(encoder):
    ids = tokenize(["a red ball rises", "a small green heart, at night, spins", ""], TOKENIZER)
    with torch.no_grad():
        assert (encoder(ids)[1] - encoder(ids[1:2])[0]).abs().max() < 1e-5


def test_words_see_each_other_and_their_order(encoder):
    a, b = tokenize(["red ball", "ball red"], TOKENIZER)
    with torch.no_grad():
        one, two = encoder(a[None])[0], encoder(b[None])[0]
    assert (one[0] - two[0]).abs().max() > 1e-3             # even <bos> has read both
    assert (one[:3].sum(0) - two[:3].sum(0)).abs().max() > 1e-3


def test_the_empty_prompt_is_an_embedding(encoder):
    with torch.no_grad():
        null = encoder(tokenize([""], TOKENIZER))
    assert null[0, 0].abs().sum() > 0 and (null[0, 1:] == 0).all()


def test_a_tokenizer_learns_from_its_corpus():
    corpus = ["a small red star"] * 20
    trained = train_tokenizer(corpus, 300)
    assert trained.token_to_id("<pad>") == 0 and trained.token_to_id("<bos>") == 1
    assert len(trained.encode("small").ids) < len(trained.encode("zzzzz").ids)
    assert trained.decode(trained.encode("a small snow ☃").ids).strip() == "a small snow ☃"


def test_unknown_words_name_their_neighbours():
    words = ("a", "small", "red", "star")
    assert unknown_words("a smal red, star!", words) == [("smal", "small")]
    assert unknown_words("A RED star", words) == []


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="^dim: got 30, allowed: a multiple of num_heads = 4"):
        TextConfig(dim=30)


@pytest.mark.parametrize("name", ["vocab_size", "dim", "num_layers", "num_heads", "max_length"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"^{name}: got 0, allowed: 1 or more"):
        TextConfig(**{name: 0})


def test_too_many_ids_are_named(encoder):
    with pytest.raises(ValueError, match="^ids: got 25 tokens, allowed: at most 24"):
        encoder(torch.ones(1, 25, dtype=torch.long))
