"""Write the words that captions of the full world are made of: sora_edu/data/words_full.json, from the language's tables (chapter 5g).

    python tools/words.py            write the file
    python tools/words.py --check    exit code 1 if the file is not what would be written
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "sora_edu" / "data" / "words_full.json"


def phrases():
    "Every phrase that a caption may be put together from, patterns with their gaps included."
    from sora_edu.world import language as says
    for slot, words in says.SPOKEN.items():
        for ways in words.values():
            for way in ways:
                yield from (phrase for _, phrase in says._sounds(slot, way))
    for verb in says.SWIMS.values():                                    # fish swim to the right
        yield from says._forms(f"{verb} right").values()
    for patterns in (*says.BEATS, says.CAMERA, *(half for frame in says.FRAMES.values() for half in frame)):
        yield from patterns
    yield from ("a", "an", "one", "is", "are", "was", "it", "they", "while", "and")         # what the gaps are filled with


def words():
    "The list, sorted."
    bare = (re.sub(r"\{\w*\}", " ", phrase) for phrase in phrases())
    return sorted({word for phrase in bare for word in re.findall(r"[^\s,.;!?]+", phrase.lower())})


def main():
    text = json.dumps(words(), indent=0) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not FILE.exists() or FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
