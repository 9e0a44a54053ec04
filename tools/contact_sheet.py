"""Make the pictures of README.md: clips of prompts drawn by a fixed seed, none picked by hand.

    python tools/contact_sheet.py             from the packaged weights: what the model makes
    python tools/contact_sheet.py --renders   from the world's renderer: what the model learns from

Writes nbs/images/contact-sheet.png (48 prompts, four frames each), nbs/images/clips.webp (the first eight, moving) and
nbs/images/favicon.png.
"""
import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
IMAGES = ROOT / "nbs" / "images"
SEED, COUNT, BATCH = 48, 48, 16


def scenes_and_prompts():
    "The first scenes of stream 48, and their plain captions."
    from sora_edu import World
    from sora_edu.world.captions import caption
    scenes = World("mini").sample(SEED, COUNT, split="all")
    return scenes, [caption(scene, "plain") for scene in scenes]


def clips(scenes, prompts, renders=False):
    "uint8 [48, T, H, W, 3]: generated (marked as such), or rendered."
    if renders:
        from sora_edu.video import to_uint8
        from sora_edu.world.render import render
        return to_uint8(render(scenes))
    from sora_edu import generate
    parts = [generate(prompts[i:i + BATCH], seed=list(range(i, i + BATCH))).frames for i in range(0, COUNT, BATCH)]
    return np.concatenate(parts)


def labelled(picture, text, lines=1):
    "`picture` uint8 [H, W, 3] with `text` under it, in up to `lines` lines."
    height, text = 4 + 12 * lines, "\n".join(textwrap.wrap(text, picture.shape[1] // 5)[:lines])
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + height), "white")
    image.paste(Image.fromarray(picture))
    ImageDraw.Draw(image).text((2, picture.shape[0] + 2), text, fill="black", font=ImageFont.load_default(size=10))
    return np.asarray(image)


def grid(pictures, columns, gap=6):
    "Pictures of one size in rows of `columns`, white between."
    padded = np.pad(np.stack(pictures), ((0, 0), (gap // 2,) * 2, (gap // 2,) * 2, (0, 0)), constant_values=255)
    return rearrange(padded, "(r c) h w k -> (r h) (c w) k", c=columns)


def moving(frames, prompts, path, columns=4, zoom=2):
    "An animated WebP of a few clips, enlarged."
    big = frames.repeat(zoom, axis=2).repeat(zoom, axis=3)
    pages = [Image.fromarray(grid([labelled(clip[t], text, 3) for clip, text in zip(big, prompts)], columns)) for t in range(frames.shape[1])]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=125, loop=0, quality=80, method=6)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", action="store_true", help="what the model learns from, instead of what it makes")
    scenes, prompts = scenes_and_prompts()
    renders = parser.parse_args().renders
    made = clips(scenes, prompts, renders)
    prompts = ["rendered, not generated: " + text for text in prompts] if renders else prompts
    from sora_edu.video import filmstrip, write_png
    IMAGES.mkdir(exist_ok=True)
    write_png(IMAGES / "contact-sheet.png", grid([labelled(filmstrip(clip, n=4), text, 2 if renders else 1) for clip, text in zip(made, prompts)], columns=3))
    moving(made[:8], prompts, IMAGES / "clips.webp")
    write_png(IMAGES / "favicon.png", made[0][8][::2, ::2])
    print("written:", *sorted(path.relative_to(ROOT).as_posix() for path in IMAGES.iterdir()))


if __name__ == "__main__":
    main()
