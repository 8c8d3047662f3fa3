"""Further pre-training on texts, and averages of weights."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

import adapt
from base_bert import load_tokenizer
from bert import BertModel
from datasets import Example, Loader, collate, tokenize
from helpers import SAMPLE, run_program, run_stopped
from multitask_classifier import load_model
from tasks import TASKS
from tiny_bert import SIZES, randomise

ADAPT = """--option adapt --tasks sst,sts --max_train_samples 60 --batch_size 8 --epochs 2 --precision fp32
--logging_steps 5 --save_steps 2""".split()  # noqa: SIM905
SIZE = ["--max_train_samples=16", "--max_eval_samples=12", "--batch_size=4", "--epochs=1"]
SIZE += ["--steps_per_epoch=3", "--no_report"]


def small_dataset(tokenizer):
    texts = [("a fine film with an old idea",), ("a man is playing a guitar", "the man plays")]
    return tokenize(
        [Example(str(k), text, None) for k, text in enumerate(texts * 20)], TASKS["sst"], tokenizer, 32
    )


def test_the_loss_is_that_of_transformers(tmp_path, encoder):
    """Guards against a decoder that is not tied, a head without its GELU or LayerNorm, and a loss over all
    pieces. The same masks, a `BertForMaskedLM` with random weights, its folder opened by us."""
    tokenizer = load_tokenizer(encoder)
    sizes = SIZES | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 64}
    torch.manual_seed(0)
    theirs = randomise(transformers.BertForMaskedLM(transformers.BertConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = adapt.MaskedLM(BertModel.from_pretrained(str(tmp_path))).eval()
    assert ours.load_head(load_file(tmp_path / "model.safetensors"))
    dataset = small_dataset(tokenizer)
    batch = collate(dataset, torch.arange(6).numpy(), seed=3)
    ids, masked = adapt.mask(batch, tokenizer, batch.seed)
    loss = adapt.masked_loss(ours, batch, tokenizer, torch.device("cpu"))
    labels = torch.where(masked, batch.input_ids, -100)
    inputs = {"attention_mask": batch.attention_mask, "token_type_ids": batch.token_type_ids}
    expected = theirs(input_ids=ids, labels=labels, **inputs).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    theirs_grad = theirs.bert.embeddings.word_embeddings.weight.grad  # of both uses of the matrix
    torch.testing.assert_close(ours.bert.word_embedding.weight.grad, theirs_grad, rtol=1e-4, atol=1e-6)


def test_masks_have_the_papers_shares(tokenizer):
    """Guards against holes in [CLS], [SEP] or padding, and shares other than 15 %, and of them 80/10/10."""
    dataset = small_dataset(tokenizer)
    loader = Loader(dataset, 40, (1,))
    chosen = hidden = kept = total = 0
    for k in range(60):
        batch = loader[k]
        ids, masked = adapt.mask(batch, tokenizer, batch.seed)
        real = batch.attention_mask if batch.attention_mask is not None else torch.ones_like(masked)
        special = torch.isin(batch.input_ids, torch.tensor([0, 101, 102]))  # of MiniLM
        assert not (masked & (special | ~real.bool())).any()
        assert torch.equal(ids[~masked], batch.input_ids[~masked])
        again = adapt.mask(batch, tokenizer, batch.seed)
        assert torch.equal(again[0], ids) and torch.equal(again[1], masked)
        total += int((~special).sum())
        chosen += int(masked.sum())
        hidden += int((ids[masked] == 103).sum())
        kept += int((ids[masked] == batch.input_ids[masked]).sum())
    error = (chosen * 0.8 * 0.2) ** 0.5
    assert chosen / total == pytest.approx(0.15, abs=3 * (0.15 * 0.85 / total) ** 0.5)
    assert hidden == pytest.approx(0.8 * chosen, abs=3 * error)
    assert kept == pytest.approx(0.1 * chosen, abs=3 * error)


def test_an_adapted_encoder_is_opened_and_a_stopped_run_ends_like_a_whole_one(main, encoder, tmp_path):
    """Guards against an encoder that nothing opens, weights that did not move, and a resumed run with other
    masks, dropout or learning rates."""
    assert main(*ADAPT, "--output_dir", tmp_path / "whole") == 0
    run_stopped(3, *ADAPT, "--model_name_or_path", encoder, "--output_dir", tmp_path / "run")
    assert main("--option", "adapt", "--resume", "--output_dir", tmp_path / "run") == 0
    for file in ("best/model.safetensors", "last/student.safetensors", "last/optimizer.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train/texts"] * len(lines) and len(lines) >= 5
    adapted = str(tmp_path / "whole" / "best")
    before, after = (
        model.state_dict()
        for model in (BertModel.from_pretrained(adapted), transformers.BertModel.from_pretrained(adapted))
    )
    assert torch.equal(before["word_embedding.weight"], after["embeddings.word_embeddings.weight"])
    assert transformers.AutoTokenizer.from_pretrained(adapted).model_max_length == 64  # the encoder's
    fine_tuned = ["--model_name_or_path", adapted, "--output_dir", tmp_path / "tuned"]
    assert run_program(*SIZE, "--tasks", "sst", *fine_tuned) == 0


def test_a_mistake_does_not_delete_the_run_before(main, tmp_path, caplog):
    """Guards against hours of training that --overwrite_output_dir deletes before the encoder is found, and
    against SMART that is asked for and silently left out."""
    assert main(*ADAPT, "--use_smart", "--steps_per_epoch", 1, "--output_dir", tmp_path / "run") == 0
    assert "--use_smart: with --option adapt this has no effect" in caplog.text
    wrong = ["--model_name_or_path", "nowhere", "--overwrite_output_dir", "--output_dir", tmp_path / "run"]
    assert main(*ADAPT, *wrong) == 2
    assert (tmp_path / "run/best/model.safetensors").exists()


@pytest.fixture(scope="module")
def three(tmp_path_factory, encoder):
    """Three short runs: two of sst with other seeds, one of sts."""
    folder = tmp_path_factory.mktemp("average")
    flags = [*SIZE, "--lr", 1e-3, "--model_name_or_path", encoder, "--data_dir", SAMPLE]
    for name, task, seed in (("a", "sst", 1), ("b", "sst", 2), ("c", "sts", 1)):
        assert run_program(*flags, "--tasks", task, "--seed", seed, "--output_dir", folder / name) == 0
    return folder


def score(three, option, *names, out) -> int:
    """Evaluate a model, or the average of some."""
    folders = [word for name in names for word in ("--checkpoint", three / name)]
    flags = ["--data_dir", SAMPLE, "--no_report", "--output_dir", three / out]
    return run_program("--option", option, *folders, *flags)


def test_every_weight_is_the_mean(three):
    """Guards against heads of one model, an average of predictions, and scores of another model."""
    assert score(three, "average", "a", "b", out="soup") == 0
    soup, a, b = (load_model(three / name)[0].state_dict() for name in ("soup", "a", "b"))
    assert set(soup) == set(a) and not torch.equal(a["heads.sst.weight"], b["heads.sst.weight"])
    for name, value in soup.items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2, rtol=1e-6, atol=1e-7)
    results = json.loads((three / "soup/results.json").read_text())
    assert score(three, "evaluate", "soup", out="again") == 0
    assert json.loads((three / "again/results.json").read_text())["dev"] == results["dev"]
    assert (three / "soup/predictions/sst-dev-output.csv").exists()


def test_a_soup_without_dev_rows_leaves_an_earlier_one(three, tmp_path):
    """Guards against --overwrite_output_dir that deletes results before the data files are found."""
    soup = shutil.copytree(three / "a", tmp_path / "soup")
    flags = ["--checkpoint", three / "a", "--checkpoint", three / "b", "--output_dir", soup]
    nowhere = ["--data_dir", tmp_path, "--overwrite_output_dir"]
    assert run_program("--option", "average", *flags, *nowhere) == 2
    assert (soup / "results.json").exists() and (soup / "predictions/sst-dev-output.csv").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [(("a",), "twice or more"), (("a", "a"), "given twice"), (("a", "c"), "other tasks"), (("a", "x"), "x")],
)
def test_models_that_are_no_soup(three, capsys, names, said):
    """Guards against a mean of models that have nothing in common, or of one."""
    assert score(three, "average", *names, out="none") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and not (three / "none" / "best").exists()
