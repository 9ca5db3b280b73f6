// What people give: a drawing, a file, the camera; a text or two; tensors. Each tells the page of a new item.

/** Make an element: its attributes, and what is in it. */
export function made(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...inside);
  return element;
}

/** Fill the place for pictures; `tell(item, kind)` is told of every new one. Returns how to show an example. */
export function forPictures(place, { draws }, tell) {
  const board = draws ? drawing(tell) : null;
  const shown = made("img", { id: "shown", alt: "The picture that was given", hidden: true });
  const give = (blob) => {
    shown.src = URL.createObjectURL(blob);
    shown.hidden = false;
    if (board) board.element.hidden = true;
    return tell(blob, "file");
  };
  const file = made("input", { type: "file", accept: "image/*", onchange: () => file.files[0] && give(file.files[0]) });
  const tools = made("div", { class: "tools" });
  if (board) {
    const again = () => {
      shown.hidden = true;
      board.element.hidden = false;
      board.clear();
    };
    tools.append(made("button", { type: "button", id: "clear", onclick: again }, "Draw anew"));
  }
  tools.append(made("label", { class: "file" }, "Choose a file", file));
  if (navigator.mediaDevices?.getUserMedia) tools.append(camera(place, give));
  place.append(...(board ? [board.element] : []), shown, tools);
  place.addEventListener("dragover", (event) => event.preventDefault());
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) give(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && give(event.clipboardData.files[0]));
  return (blob) => (board ? board.show(blob) : give(blob));
}

function drawing(tell) {
  const board = made("canvas", { id: "board", width: 280, height: 280, tabindex: 0, role: "img", "aria-label": "Draw here with mouse, pen or finger" });
  const pen = board.getContext("2d", { willReadFrequently: true });
  let [last, isExample] = [null, false];
  const clear = () => {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, board.width, board.height);
    isExample = false;
  };
  const at = (event) => {
    const box = board.getBoundingClientRect();
    return [((event.clientX - box.left) * board.width) / box.width, ((event.clientY - box.top) * board.height) / box.height];
  };
  const line = (to) => {
    Object.assign(pen, { lineWidth: 16, lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...to);
    pen.stroke();
    last = to;
  };
  const told = async () => tell(await createImageBitmap(board), "drawing");
  board.addEventListener("pointerdown", (event) => {
    if (isExample) clear();
    board.setPointerCapture(event.pointerId);
    last = at(event);
    line(last);
  });
  board.addEventListener("pointermove", (event) => last && line(at(event)));
  for (const end of ["pointerup", "pointercancel"]) {
    board.addEventListener(end, () => {
      if (last) told();
      last = null;
    });
  }
  board.addEventListener("keydown", (event) => ["Delete", "Backspace", "Escape"].includes(event.key) && clear());
  clear();
  return {
    element: board,
    clear,
    async show(blob) {
      const bitmap = await createImageBitmap(blob);
      clear();
      const scale = Math.min(board.width / bitmap.width, board.height / bitmap.height);
      pen.imageSmoothingEnabled = scale < 1;
      const [width, height] = [bitmap.width * scale, bitmap.height * scale];
      pen.drawImage(bitmap, (board.width - width) / 2, (board.height - height) / 2, width, height);
      isExample = true;
      await tell(blob, "example");
    },
  };
}

function camera(place, give) {
  let video = null;
  const stop = () => {
    video?.srcObject?.getTracks().forEach((one) => one.stop());
    video?.remove();
    video = null;
    button.textContent = "Camera";
  };
  const take = async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    stop();
    give(await canvas.convertToBlob({ type: "image/png" }));
  };
  const start = async () => {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video = made("video", { autoplay: true, playsinline: true, muted: true });
      video.srcObject = stream;
      place.prepend(video);
      button.textContent = "Take it";
    } catch {
      button.textContent = "No camera";
      button.disabled = true;
    }
  };
  const button = made("button", { type: "button", id: "camera", onclick: () => (video ? take() : start()) }, "Camera");
  return button;
}

/** Fill the place for texts: one, or two that are compared. */
export function forTexts(place, { pairs, examples }, tell) {
  const boxes = (pairs ? ["First text", "Second text"] : ["Text"]).map((label, number) => {
    const box = made("textarea", { rows: pairs ? 3 : 5, "aria-label": label });
    box.value = String(examples[number] ?? examples[0] ?? "");
    return box;
  });
  const given = () => tell(boxes.map((box) => box.value).filter((text) => text.trim()), "text");
  const button = made("button", { type: "button", id: "ask", onclick: given }, pairs ? "Compare" : "Ask");
  for (const box of boxes) {
    box.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && given());
    place.append(made("label", {}, box));
  }
  place.append(button);
  return given;
}

/** Fill the place for tensors: a box of JSON for each input. */
export function forTensors(place, { inputs }, tell) {
  const boxes = inputs.map((one) => {
    const box = made("textarea", { rows: 4, "aria-label": one.name, spellcheck: "false" });
    box.value = JSON.stringify(one.example);
    place.append(made("label", {}, `${one.name}: ${one.described}`, box));
    return box;
  });
  const given = () => {
    const item = {};
    try {
      inputs.forEach((one, number) => {
        const nested = JSON.parse(boxes[number].value);
        item[one.name] = { dtype: one.dtype, dims: shapeOf(nested), values: [nested].flat(Infinity) };
      });
    } catch (error) {
      return tell(null, `This is no JSON of numbers: ${error.message}`);
    }
    return tell(item, "tensors");
  };
  place.append(made("button", { type: "button", id: "ask", onclick: given }, "Ask"));
  return given;
}

function shapeOf(nested) {
  return Array.isArray(nested) ? [nested.length, ...(nested.length ? shapeOf(nested[0]) : [])] : [];
}
