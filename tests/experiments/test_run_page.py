"""The page of a run."""

from peft_vprompt.experiments.run_page import write_page


def report(**more) -> dict:
    settings = {"method": "coop", "model": None, "shots": 4, "seed": 1}
    plain = {"title": "CoOp", "settings": settings, "recipe": None, "steps": 4, "trainable_parameters": 10}
    plain |= {"adapter_bytes": 100, "data": None, "classes": {"all": ["a", "b"]}, "accuracy": {}, "history": []}
    return plain | more


def test_a_page_says_what_there_is_and_runs_nothing(tmp_path):
    found = {
        "name": "all", "images": 2, "of": 9, "accuracy": 50.0, "ece": 10.0, "names": ["<script>x</script>", "b"],
        "bins": [{"confidence": 0.9, "accuracy": 0.5, "share": 1.0}], "confusion": [[0.0, 1.0], [0.0, 1.0]],
        "confused": [{"true": "<script>x</script>", "predicted": "b", "count": 1, "share": 1.0}],
        "worst": [{"image": "<img>", "label": "a", "predicted": "b", "confidence": 0.9, "picture": None}],
    }  # fmt: skip
    history = [
        {"loss": 3.0, "step": 1},
        {"loss": 2.0, "step": 2},
        {"loss": 9.0, "step": 1},
        {"loss": float("nan"), "step": 2},
    ]
    write_page(
        report(history=history, accuracy={"all": 40.0}, zero_shot={"all": 45.0}), [found], tmp_path / "report.html"
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;img&gt;" in page
    assert "Worse than zero-shot" in page and "evenly taken from the 9" in page
    assert page.count("<polyline") == 2  # training began anew: two lines


def test_a_page_without_test_images(tmp_path):
    write_page(report(), [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no accuracy was measured" in page and "<polyline" not in page
