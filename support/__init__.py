"""What knows no BERT and no task. Nothing here imports a module of this project from outside this folder."""
