"""Encodings: what is read, what is refused, and which one is offered."""

from __future__ import annotations

import pytest

from utils.course import ConfigError, run_config
from utils.dataset.decoding import is_letter_salad
from utils.dataset.faqs import load_faqs
from utils.dataset.table import DataError

TEXTS = {
    "russian": [("Как сбросить пароль?", "Откройте настройки и нажмите кнопку."),
                ("Где хранятся файлы?", "В корзине команды, в папке «данные».")],
    "chinese": [("请问怎么删除端点？", "请打开控制台并点击删除。"),
                ("谁来付款？", "由团队付款。")],
    "french": [("Où est le café ?", "À côté de l’église, près du château."),
               ("C’est gratuit ?", "Oui, l’entrée est gratuite l’été.")],
    "german": [("Wo fällt die Gebühr an?", "Für München über die Straße „Grün“."),
               ("Wie heißt er?", "Er heißt Jürgen Groß und wohnt in Köln.")],
    "japanese": [("削除する方法は？", "コンソールで削除を押してください。")],
    "polish": [("Jak usunąć punkt końcowy?", "Otwórz konsolę i naciśnij żółty guzik."),
               ("Gdzie jest źródło?", "Źródło leży w łące za świątynią.")],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(language: str, encoding: str):
        lines = ["question,answer"] + [f'"{q}","{a}"' for q, a in TEXTS[language] * 3]
        path = tmp_path / "mine.csv"
        path.write_bytes("\n".join(lines).encode(encoding, "replace"))
        return path

    return write


@pytest.mark.parametrize(
    "language, encoding",
    [
        ("russian", "cp1251"),
        ("russian", "koi8_r"),
        ("russian", "cp866"),
        ("russian", "iso8859_5"),
        ("russian", "mac_cyrillic"),
        ("chinese", "gbk"),
        ("chinese", "big5"),
        ("french", "mac_roman"),
        ("german", "mac_roman"),
        ("german", "cp850"),
        ("french", "cp437"),
        ("japanese", "shift_jis"),
        ("japanese", "euc_jp"),
        ("polish", "cp1250"),
    ],
)
def test_another_encoding_is_refused_and_can_be_named(
    write, language, encoding
) -> None:
    path = write(language, encoding)
    with pytest.raises(DataError) as caught:
        load_faqs(path)
    message = str(caught.value)
    for part in ("mine.csv, line ", "load_faqs(path, encoding=", "COURSE_ENCODING="):
        assert part in message
    assert "--encoding" in message
    faqs = load_faqs(path, encoding=encoding)
    if encoding not in ("cp850", "cp437", "mac_roman", "big5"):
        assert faqs.frame["instruction"].iloc[0] == TEXTS[language][0][0]
    assert any(f"read as {encoding}, as you asked" in note for note in faqs.notes)


@pytest.mark.parametrize(
    "language, encoding, offered",
    [
        ("russian", "cp1251", "cp1251"),
        ("chinese", "gbk", "gb18030"),
        ("german", "mac_roman", "mac_roman"),
        ("french", "mac_roman", "mac_roman"),
    ],
)
def test_the_likely_encoding_is_offered(write, language, encoding, offered) -> None:
    with pytest.raises(DataError, match=f"encoding='{offered}'"):
        load_faqs(write(language, encoding))


@pytest.mark.parametrize("language", ["french", "german"])
def test_western_texts_are_read_as_windows_1252(write, language) -> None:
    faqs = load_faqs(write(language, "cp1252"))
    assert faqs.frame["instruction"].iloc[0] == TEXTS[language][0][0]


@pytest.mark.parametrize(
    "text",
    [
        "It costs 5 € – or £4.",
        "“Quoted” text… it’s fine",
        "été à côté où ça",
        "¿Dónde está? ¡Aquí!",
        "Größe 20 m² bei 5 °C",
        "smørrebrød på ø i å",
        "Þetta er íslenska",
        "iPhone™ and Word®",
        "naïve façade",
    ],
)
def test_western_texts_are_no_letter_salad(text) -> None:
    assert not is_letter_salad(text)


def test_the_environment_names_the_encoding(write, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_ENCODING", "cp1251")
    faqs = load_faqs(write("russian", "cp1251"))
    assert faqs.frame["instruction"].iloc[0] == "Как сбросить пароль?"
    with pytest.raises(ConfigError, match="COURSE_ENCODING is 'klingon'"):
        run_config({"COURSE_ENCODING": "klingon"})


def test_a_wrong_encoding_names_the_line(write) -> None:
    with pytest.raises(DataError, match="line 2.*are not utf-8"):
        load_faqs(write("russian", "cp1251"), encoding="utf-8")


def test_one_broken_byte_in_utf_8_names_its_line(tmp_path) -> None:
    raw = bytearray(b"question,answer\n")
    for question, answer in TEXTS["chinese"] * 10:
        raw += f"{question},{answer}\n".encode()
    raw[150] = 0xFF
    (tmp_path / "mine.csv").write_bytes(raw)
    with pytest.raises(DataError, match="line .*the rest of the file is. Mend"):
        load_faqs(tmp_path / "mine.csv")
