"""Places that a configuration may name: none holds a secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.urls import url_problem

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("a\x00b", "control character"),
        ("a\ud800", "a lone surrogate"),
        ("s3://user:secret@bucket/x", "password"),
        ("S3://user:secret@bucket/x", "password"),
        ("s3://user:sec/ret@bucket/x", "password"),
        ("s3://user:sec?ret@bucket/x", "password"),
        ("s3://:secret@bucket", "password"),
        ("https://token@host/x", "password"),
        ("simplecache::ftp://user:secret@host/x", "password"),
        ("zip://a.csv::s3://user:secret@bucket/x.zip", "password"),
        ("https://host/x?X-Amz-Signature=1", "X-Amz-Signature"),
        ("https://host/x?sig=1", "sig"),
        ("https://host/x?a=1&api_key=2", "api_key"),
        ("https://host/x?a=1#access_token=2", "access_token"),
        ("simplecache::https://host/x?token=1", "token"),
        ("https://host/x?token", "token"),
        ("https://host/x?%74oken=1", "token"),
    ],
)
def test_a_place_with_a_secret_is_refused_without_it(url: str, problem: str) -> None:
    told = str(url_problem(url))
    assert problem in told and "secret" not in told


@pytest.mark.parametrize(
    "url",
    [
        ".opdscope",
        "/a b/ü/سؤال.jsonl",
        "a:b@c",
        "s3://bucket/x",
        "https://host:8080/x.csv?page=2&keyword=a",
        "github://organisation:repository@main/x.csv",
        "ftp://anonymous@host/x",
        "simplecache::ftp://host/x",
        "s3://host:9000/a@b.csv",
        "https://host/a@b/x.csv",
        "C:\\data\\questions.jsonl",
        "/data?token=1",
    ],
)
def test_other_places_are_kept(url: str) -> None:
    assert url_problem(url) is None


@given(WORD, WORD, WORD, st.sampled_from(["s3", "ftp", "http", "https", "abfs", "ssh"]))
def test_every_password_is_seen_wherever_it_stands_in_a_chain(user: str, word: str, host: str, scheme: str) -> None:
    url = f"{scheme}://{user}:{word}@{host}/x.csv"
    for whole in (url, f"simplecache::{url}", f"zip://x.csv::{url}", f"filecache::simplecache::{url}"):
        assert "password" in str(url_problem(whole))
