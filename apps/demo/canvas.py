"""A canvas to draw on with mouse, pen or finger, with its Undo and Clear; each stroke is sent when it ends.

As long as nothing is drawn it may show an example, which goes with the first stroke.

A component of the page's own, because answers are due 300 ms after the pen is lifted, and the canvas packages wait 200 ms
before they send anything.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo.pixels import as_address

SIDE = 280
"""Width and height in pixels; a stroke is 20 wide."""

_HTML = f"""
<canvas width="{SIDE}" height="{SIDE}" tabindex="0" role="img" aria-label="Canvas to draw on, white on black"></canvas>
<div class="tools">
  <button type="button" class="undo" aria-label="Undo the last stroke">↶ Undo</button>
  <button type="button" class="clear" aria-label="Clear the canvas">✕ Clear</button>
  <span class="hint"></span>
</div>
"""
_CSS = f"""
canvas {{ width: min({SIDE}px, 100%); aspect-ratio: 1; border-radius: 0.5rem; touch-action: none;
  cursor: crosshair; display: block; }}
canvas:focus-visible, button:focus-visible {{ outline: 2px solid var(--st-primary-color); outline-offset: 2px; }}
.tools {{ display: flex; gap: 0.5rem; margin-top: 0.75rem; align-items: center; max-width: {SIDE}px; }}
.hint {{ font-size: 0.8rem; line-height: 1.2; color: var(--st-text-color); }}
button {{ font: inherit; white-space: nowrap;
  color: var(--st-text-color); background: transparent; padding: 0.35rem 0.9rem; cursor: pointer;
  border: 1px solid color-mix(in srgb, var(--st-text-color) 25%, transparent); border-radius: 0.5rem; }}
button:hover:not(:disabled) {{ border-color: var(--st-primary-color); color: var(--st-primary-color); }}
button:disabled {{ opacity: 0.4; cursor: not-allowed; }}
"""
_JS = """
export default function ({ parentElement, data, setStateValue }) {
  const canvas = parentElement.querySelector("canvas");
  if (canvas.dataset.ready) return;
  canvas.dataset.ready = "yes";
  const undo = parentElement.querySelector(".undo"), clear = parentElement.querySelector(".clear");
  const hint = parentElement.querySelector(".hint");
  const pen = canvas.getContext("2d");
  let strokes = (data?.strokes ?? []).map((one) => one.slice()), current = null;
  let example = null;
  if (data?.example && !strokes.length) {
    example = new Image();
    example.onload = () => paint();
    example.src = data.example;
  }

  const paint = () => {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = "#fff";
    pen.lineWidth = 20;
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of strokes) {
      pen.beginPath();
      pen.moveTo(stroke[0][0], stroke[0][1]);
      for (const [x, y] of stroke) pen.lineTo(x + 0.01, y);
      pen.stroke();
    }
    if (example?.complete) {
      const grown = Math.min(canvas.width / example.width, canvas.height / example.height);
      const width = example.width * grown, height = example.height * grown;
      pen.drawImage(example, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    }
    hint.textContent = example ? data.hint : "";
    undo.disabled = !strokes.length;
    clear.disabled = !strokes.length && !example;
  };
  const send = () =>
    setStateValue("drawing", { strokes, blank: true, picture: strokes.length ? canvas.toDataURL("image/png") : "" });
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale].map((one) => Math.round(one * 10) / 10);
  };
  const back = () => { strokes = strokes.slice(0, -1); paint(); send(); };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    example = null;
    current = [place(event)];
    strokes = [...strokes, current];
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) current.push(place(one));
    paint();
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, () => { if (current) { current = null; send(); } });
  canvas.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && strokes.length) { event.preventDefault(); back(); }
  });
  undo.addEventListener("click", back);
  clear.addEventListener("click", () => { strokes = []; example = null; paint(); send(); });
  paint();
}
"""
_canvas = st.components.v2.component("kit_canvas", html=_HTML, css=_CSS, js=_JS)


def canvas(name: str, example: NDArray[np.uint8] | None = None) -> tuple[bytes | None, bool]:
    """Draw the canvas. What is drawn outlives a visit to another tab.

    Args:
        name: Of what it is drawn for; each has a canvas with its own example.
        example: uint8 `[height, width]`, shown as long as nobody has drawn or cleared anything.

    Returns:
        The drawing as PNG, None as long as it is empty; and whether the example is in sight.
    """
    kept: dict[str, Any] = st.session_state.get("drawing") or {}
    data = {"strokes": kept.get("strokes", []), "example": "", "hint": "An example: draw over it"}
    if example is not None and not kept.get("blank"):
        data["example"] = as_address(example)
    found = _canvas(key=f"canvas {name}", data=data, on_drawing_change=_nothing)
    drawing = found.get("drawing")
    if drawing is not None:
        kept = st.session_state["drawing"] = drawing
    if not kept.get("picture"):
        return None, example is not None and not kept.get("blank")
    try:
        return base64.b64decode(str(kept["picture"]).partition("base64,")[2], validate=True), False
    except binascii.Error:
        return None, False


def _nothing() -> None:
    """Have the page drawn again when a stroke ends, and no more than that."""
