"""The four built-in tasks, as the tests know them: a task added to tasks.TASKS touches no test of these."""

BUILT_IN = ("sst", "para", "sts", "cfimdb")


# "Similiary" is spelled as the course spells it.
HEADERS = {
    "sst": "Predicted_Sentiment",
    "cfimdb": "Predicted_Sentiment",
    "para": "Predicted_Is_Paraphrase",
    "sts": "Predicted_Similiary",
}
STEMS = {"sst": "ids-sst", "cfimdb": "ids-cfimdb", "para": "quora", "sts": "sts"}
