"""General tools that know no BERT and no task. They import nothing of the project outside this folder."""

from support import two_datasets

two_datasets.install()
