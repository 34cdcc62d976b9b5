"""The page on reliability is what its results give, and they hold what it promises."""

from tests.support.pages import check_page, load_page


def test_the_page_is_what_its_results_give():
    results = check_page(load_page("render/reliability"))
    for row in results["kills"].values():
        assert row["equal"] == row["chains"] > 0 and row["broken"] == 0
    for row in results["full_disks"].values():
        assert row["clear"] == row["went_on"] == row["disks"]
    assert results["fingerprint_share"] < 0.01
    for before, after in (results["memory"]["switches_mb"], results["memory"]["lists_mb"]):
        assert after - before < 20
