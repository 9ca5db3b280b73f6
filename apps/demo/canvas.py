"""A canvas to draw on with mouse, pen or finger, with its Undo and Clear; each stroke is sent when it ends.

A component of the page's own, because answers are due 300 ms after the pen is lifted, and the canvas packages wait 200 ms
before they send anything.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import streamlit as st

SIDE = 280
"""Width and height in pixels; a stroke is 20 wide."""

_HTML = f"""
<canvas width="{SIDE}" height="{SIDE}" tabindex="0" role="img" aria-label="Canvas to draw on, white on black"></canvas>
<div class="tools">
  <button type="button" class="undo" aria-label="Undo the last stroke">↶ Undo</button>
  <button type="button" class="clear" aria-label="Clear the canvas">✕ Clear</button>
</div>
"""
_CSS = f"""
canvas {{ width: min({SIDE}px, 100%); aspect-ratio: 1; border-radius: 0.5rem; touch-action: none;
  cursor: crosshair; display: block; }}
canvas:focus-visible, button:focus-visible {{ outline: 2px solid var(--st-primary-color); outline-offset: 2px; }}
.tools {{ display: flex; gap: 0.5rem; margin-top: 0.75rem; }}
button {{ font: inherit; color: var(--st-text-color); background: transparent; padding: 0.35rem 0.9rem; cursor: pointer;
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
  const pen = canvas.getContext("2d");
  let strokes = (data?.strokes ?? []).map((one) => one.slice()), current = null;

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
    undo.disabled = clear.disabled = !strokes.length;
  };
  const send = () =>
    setStateValue("drawing", { strokes, picture: strokes.length ? canvas.toDataURL("image/png") : "" });
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale].map((one) => Math.round(one * 10) / 10);
  };
  const back = () => { strokes = strokes.slice(0, -1); paint(); send(); };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
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
  clear.addEventListener("click", () => { strokes = []; paint(); send(); });
  paint();
}
"""
_canvas = st.components.v2.component("kit_canvas", html=_HTML, css=_CSS, js=_JS)


def canvas() -> bytes | None:
    """Draw the canvas; return the drawing as PNG, None as long as it is empty. It outlives a visit to another tab."""
    kept: dict[str, Any] = st.session_state.get("drawing") or {}
    found = _canvas(key="canvas", data={"strokes": kept.get("strokes", [])}, on_drawing_change=_nothing)
    drawing = found.get("drawing")
    if drawing is not None:
        kept = st.session_state["drawing"] = drawing
    if not kept.get("picture"):
        return None
    try:
        return base64.b64decode(str(kept["picture"]).partition("base64,")[2], validate=True)
    except binascii.Error:
        return None


def _nothing() -> None:
    """Have the page drawn again when a stroke ends, and no more than that."""
