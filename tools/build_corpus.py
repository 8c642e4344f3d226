"""Text to train on, from documentation packages that are installed on a Debian machine: usage build_corpus.py OUT.jsonl [PACKAGE ...]

One {"text", "source"} a line, a document each, for `fathom train-tokenizer` and `fathom prepare`. Nothing is fetched, nothing of it
belongs to this project: licences are those of the packages. Without names: those of the list below that are installed.

    apt-get install anarchism git-doc manpages debian-policy
    python3 tools/build_corpus.py corpus.jsonl
"""

import argparse
import gzip
import html.parser
import json
import pathlib
import re
import subprocess
import sys

PACKAGES = ["anarchism", "python3-doc", "python3.11-doc", "perl-doc", "manpages", "manpages-dev", "manpages-de", "manpages-fr", "git-doc",
            "debian-policy", "developers-reference", "debian-handbook", "miscfiles", "bible-kjv-text", "fortunes", "dict-jargon", "dict-foldoc",
            "linux-doc", "glibc-doc", "libreoffice-help-en-us", "gnome-user-docs", "postgresql-doc"]
SHORTEST = 500  # characters: less is no document
LARGEST = 64 << 20  # bytes of one file


class HtmlText(html.parser.HTMLParser):
    """The words of a page; block elements end a line."""

    BLOCKS = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "tr", "br", "dt", "dd", "table", "ul", "ol", "section"}
    SILENT = {"script", "style", "nav", "head"}

    def __init__(self):
        super().__init__()
        self.parts, self.silent = [], 0

    def handle_starttag(self, tag, attributes):
        self.silent = 0 if tag == "body" else self.silent + (tag in self.SILENT)  # </head> may be left out
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.silent -= tag in self.SILENT and self.silent > 0
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if self.silent == 0:
            self.parts.append(data)


def from_html(text):
    parser = HtmlText()
    parser.feed(text)
    return "".join(parser.parts)


def from_roff(text):
    """A manual page without its requests: headings on lines of their own, fonts and spacing dropped."""
    lines = []
    title = re.search(r"^\.(TH|Dd)\b", text, flags=re.M)  # definitions of macros come before it
    body = re.sub(r"^[.'](?:de1?|ig|am)\b.*?^\.\.$", "", text[title.start() if title else 0:], flags=re.M | re.S)
    for line in body.splitlines():
        if re.match(r"[.'](\\\"|TH|IX|RS|RE|ig|de|so|if|ie|el|nr|ds|ta|ad|hy|na|nh)", line):
            continue
        request = re.match(r"[.'] *(\w+)\s*(.*)", line)
        if request:
            name, rest = request.groups()
            if name in ("SH", "SS", "Sh", "Ss"):
                lines += ["", rest.strip('"'), ""]
            elif name in ("PP", "P", "LP", "Pp", "TP", "IP", "sp", "HP"):
                lines.append("")
            elif re.search(r"[^\W\d]", rest):
                lines.append(rest.replace('"', ""))
            continue
        lines.append(line)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)", "", "\n".join(lines))
    for escape, character in (("\\-", "-"), ("\\(aq", "'"), ("\\(dq", '"'), ("\\(em", "-"), ("\\(bu", "*"), ("\\&", ""), ("\\ ", " ")):
        text = text.replace(escape, character)
    text = re.sub(r"\\\*(\(..|\[\w*\]|.)", "", text)
    return re.sub(r"\\s[+-]?\d|\\[|^/]", "", text).replace("\\e", "\\")


def from_pod(text):
    """Perl's documentation: commands lose their sign, formatting codes their letters."""
    text = re.sub(r"^=(?:cut|encoding|over|back|begin|end|for|pod).*$", "", text, flags=re.M)
    text = re.sub(r"^=(?:head\d|item)\s*", "", text, flags=re.M)
    for _ in range(3):
        text = re.sub(r"\b[BCFILSX]<([^<>]*)>", r"\1", text)
    return text.replace("E<lt>", "<").replace("E<gt>", ">")


def convert(path, text):
    """The plain text of a file, or None if it is of no use."""
    name = path.name.removesuffix(".gz")
    if re.search(r"\.(html?|xhtml)$", name):
        return from_html(text)
    if re.search(r"\.[1-9]\w*$", name) and "/man" in str(path.parent):
        return from_roff(text)
    if name.endswith(".pod"):
        return from_pod(text)
    if re.search(r"\.(txt|md|markdown|rst|rst\.txt|asciidoc|adoc|texi?)$", name) or name in ("jargon.dict.dz", "foldoc.dict.dz"):
        return text
    if "/games/fortunes" in str(path.parent) and "." not in name:
        return text.replace("\n%\n", "\n\n")
    return None


def read(path):
    if path.stat().st_size > LARGEST:
        return None
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="ignore")


def tidy(text):
    text = text.replace("\r", "")
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def files_of(package):
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True)
    if listing.returncode != 0:
        return None
    paths = (pathlib.Path(line) for line in sorted(listing.stdout.splitlines()))
    return [p for p in paths if p.is_file() and not p.is_symlink() and p.name not in ("copyright", "changelog.gz", "changelog.Debian.gz", "NEWS.Debian.gz")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="the JSONL file to write")
    parser.add_argument("packages", nargs="*")
    options = parser.parse_args()
    seen, written, characters = set(), 0, 0
    with open(options.out, "w", encoding="utf-8") as out:
        for package in options.packages or PACKAGES:
            files = files_of(package)
            if files is None:
                if options.packages:
                    sys.exit(f"error: package '{package}' is not installed (apt-get install {package})")
                continue
            before = characters
            for path in files:
                raw = read(path)
                text = raw and convert(path, raw)
                text = tidy(text) if text else ""
                if len(text) < SHORTEST or text in seen:
                    continue
                seen.add(text)
                out.write(json.dumps({"text": text, "source": f"{package}:{path}"}, ensure_ascii=False) + "\n")
                written += 1
                characters += len(text)
            print(f"{package}: {(characters - before) / 1e6:.2f} M characters", file=sys.stderr)
    if written == 0:
        sys.exit("error: no documents: none of the packages is installed (apt-get install anarchism git-doc manpages debian-policy)")
    print(f"{options.out}: {written} documents, {characters / 1e6:.2f} M characters", file=sys.stderr)


if __name__ == "__main__":
    main()
