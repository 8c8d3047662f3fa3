"""The model card of a saved model, `best/README.md`: what it is, its scores, and what they don't say.

    run's record (settings, data, dev scores) ─ model_card ─> Markdown under a YAML header

The header is that of the Hugging Face hub, so `hf upload NAME runs/finetune/best` shares the model as it is.
Not handled: a description of the user's own data, which they write into the card themselves.
"""

import os
import re
from typing import Any

from base_bert import EMBEDDED
from tasks import TASKS, task_table

# encoders whose licence is known: by the name that the user gives, the name on the hub; all are Apache-2.0
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ENCODERS = {EMBEDDED: MINILM, MINILM: MINILM}
for size in ("base-uncased", "base-cased", "large-uncased", "large-cased"):
    ENCODERS |= dict.fromkeys((f"bert-{size}", f"google-bert/bert-{size}"), f"google-bert/bert-{size}")

TEXT = """# {name}

A BERT with a head for each of these tasks: {tasks}. The encoder was {encoder}; SMART-BERT trained it
{smart} SMART's two regularisers (Jiang et al. 2020).

| task | data | metric | value |
|---|---|---|---|
{rows}

## How to load it

In a copy of the SMART-BERT project:

```python
from multitask_classifier import MultitaskBERT

model = MultitaskBERT.from_pretrained("this folder, or its name on the hub")
print(model.predict("{first_task}", [{first_text}]))
```

The encoder and its tokenizer alone open with `AutoModel` and `AutoTokenizer` of `transformers`. The heads do
not: a `pipeline("text-classification")` would answer from a new, random head.

## What the scores don't say

{limits}

## Licence

The weights derive from the encoder, {encoder}, {licence}. The code of SMART-BERT is under MIT.
"""


def model_card(run: dict[str, Any]) -> str:
    """The card's text.

    run: the record of the run as a checkpoint has it: `config`, `trained_tasks`, `data`, and `dev`, the
    scores of the best epoch by task and metric. Of files the card has the names alone, never a path.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData  # here, so that training starts sooner

    config = run["config"]
    tasks = task_table(config.get("own", {}))
    encoder = config["model_name_or_path"]
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", encoder) and not os.path.exists(encoder)
    base_model = ENCODERS.get(encoder, encoder if is_hub_id else None)
    licence = "apache-2.0" if encoder in ENCODERS else "unknown"
    name = f"SMART-BERT on {', '.join(run['trained_tasks'])}"
    results = [
        EvalResult(
            task_type="text-classification" if tasks[task].label_names else "sentence-similarity",
            dataset_type=task,
            dataset_name=_dataset_name(run, task),
            dataset_split="dev",
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for task in run["trained_tasks"]
        for metric, value in run["dev"].get(task, {}).items()
    ]
    header = ModelCardData(
        license=licence,
        base_model=base_model,
        library_name="smart-bert",
        pipeline_tag="feature-extraction",  # the one that `transformers` can run: it needs no head
        tags=["bert", "multi-task", *run["trained_tasks"]],
        model_name=name,
        eval_results=results,
    )
    row = "| `{0.dataset_type}` | {0.dataset_name} | {0.metric_name} | {0.metric_value:.3f} |"
    first = tasks[run["trained_tasks"][0]]
    text = TEXT.format(
        name=name,
        tasks=", ".join(f"`{task}`" for task in run["trained_tasks"]),
        encoder=f"`{base_model}`" if base_model else "one from a local folder",
        smart="with" if config["use_smart"] else "without",
        rows="\n".join(map(row.format, results)),
        first_task=first.name,
        first_text='"I loved it."' if len(first.text_columns) == 1 else '("A cat sleeps.", "A cat naps.")',
        limits="\n".join(f"- {limit}" for limit in _limits(run)),
        licence=f"which is under {licence}" if encoder in ENCODERS else "whose licence you must look up",
    )
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}"))


def _dataset_name(run: dict[str, Any], task: str) -> str:
    """Which rows the scores are of."""
    config = run["config"]
    if task not in TASKS:  # of the user's own file
        held_out = f"a tenth of {os.path.basename(config['train_file'])}, held out"
        return os.path.basename(config["dev_file"]) if config["dev_file"] else held_out
    usual = TASKS[task].filename("dev")
    if run["data"] == "sample":
        return f"{usual} of the project's own sample"
    return os.path.basename(config["files"].get(f"{task}_dev", usual))


def _limits(run: dict[str, Any]) -> list[str]:
    """What a reader of the scores must know, a sentence each."""
    config = run["config"]
    chosen = "They are the run's best scores on dev, which chose the weights: expect less on new data."
    if models := run.get("averaged"):
        chosen = f"The weights are the mean of {len(models)} models, each the best of its run on dev."
    limits = [
        chosen,
        f"They are of one seed ({config['seed']}). Another seed may move them by a point or more.",
        "They say nothing about other kinds of text, or about other languages.",
    ]
    if run["data"] == "sample":
        limits.append("The data are the project's own sample, which is too small to learn much from.")
    for name, rows in (("max_eval_samples", "dev"), ("max_train_samples", "training")):
        if config[name]:
            limits.append(f"At most {config[name]} {rows} rows of each task were used.")
    if "para" in run["trained_tasks"] and ENCODERS.get(config["model_name_or_path"]) == MINILM:
        limits.append("The encoder saw Quora's duplicates in its pre-training, so that score is flattered.")
    return limits
