"""General tools that know no BERT and no task. They import nothing of the project outside this folder."""
