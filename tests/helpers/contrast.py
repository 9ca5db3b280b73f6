"""How well letters can be told from their ground, as the browser draws them (WCAG 2.2, 1.4.3)."""

from __future__ import annotations

LEAST, LEAST_LARGE = 4.5, 3.0

POOR = """() => {
  const LEFT_OUT = "svg, script, style, noscript, header, [disabled], [data-testid=stSlider]";
  const parsed = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    const rgb = text.includes("srgb") ? found.slice(0, 3).map((one) => 255 * one) : found.slice(0, 3);
    return [...rgb, found[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = (colour) => {
    const [r, g, b] = colour.map((one) => (one / 255 <= 0.03928 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const above = (element) => element.parentElement ?? element.getRootNode()?.host;
  const ground = (element) => {
    const seen = [];
    for (let one = element; one; one = above(one)) {
      const colour = parsed(getComputedStyle(one).backgroundColor);
      if (colour[3] > 0) seen.push(colour);
      if (colour[3] === 1) break;
    }
    return seen.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const opacity = (element) => {
    let found = 1;
    for (let one = element; one; one = above(one)) found *= +getComputedStyle(one).opacity;
    return found;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest(LEFT_OUT)) continue;
    const style = getComputedStyle(element), range = document.createRange();
    range.selectNodeContents(texts.currentNode);
    const box = range.getBoundingClientRect();
    if (style.visibility === "hidden" || box.width < 2 || box.height < 2 || opacity(element) === 0) continue;
    const below = ground(element), colour = parsed(style.color);
    const [one, other] = [light(over([...colour.slice(0, 3), colour[3] * opacity(element)], below)), light(below)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? LARGE : SMALL))
      found.push(`${ratio.toFixed(2)} ${texts.currentNode.data.trim().slice(0, 40)} ${style.color}`);
  }
  return found;
}""".replace("LARGE", str(LEAST_LARGE)).replace("SMALL", str(LEAST))
"""A function of the page: every text that is hard to read, with its contrast; squares of legends, charts and sliders aside."""
