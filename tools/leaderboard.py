"""Judge every checkpoint that ever shipped, by the code of today, and write figures/leaderboard.json.

    python tools/leaderboard.py            those that are not in the file yet; some minutes each
    python tools/leaderboard.py --anew     all of them, once the judge has changed
"""
import sys

from sora_edu.evaluate.ledger import leaderboard

if __name__ == "__main__":
    for row in leaderboard(anew="--anew" in sys.argv[1:]):
        print(f"{row['name']} {row['shipped']}: {row['seen']['value']} % of {row['seen']['n']}, held out {row['heldout']['value']} %")
