// Goes through the slices of scans with their class maps. A scan comes as one PNG: its slices side by side, intensity
// in red, the first class map in green and the second, if there is one, in blue.
for (const viewer of document.querySelectorAll(".viewer")) {
  const data = JSON.parse(viewer.querySelector("script").textContent);
  const part = name => viewer.querySelector(name);
  const canvas = part("canvas"), context = canvas.getContext("2d"), output = part("output"), shown = part(".shown");
  const [cases, plane, slice, fill] = [".case", ".plane", ".slice", ".fill"].map(part);
  const small = document.createElement("canvas"), pen = small.getContext("2d");
  let scan, pixels, stride;

  for (const [list, names] of [[cases, data.cases.map(c => c.title)], [plane, data.planes.map(p => p.name)]])
    list.append(...names.map((name, number) => new Option(name, number)));
  const box = (name, color, dashed) => {
    const label = document.createElement("label"), input = document.createElement("input");
    const line = document.createElement("i");
    Object.assign(input, {type: "checkbox", checked: true});
    input.addEventListener("change", draw);
    line.className = dashed ? "dashed" : "";
    if (color) line.style.setProperty("--color", color);
    label.append(input, line, name);
    shown.append(label);
    return input;
  };
  const ofClass = data.classes.map(([name, color]) => box(name, color));
  const ofMap = data.maps.map((name, number) => box(name, null, number > 0));

  function load() {
    const chosen = data.cases[cases.value], picture = new Image();
    picture.onload = () => {
      if (chosen !== data.cases[cases.value]) return;  // another was chosen meanwhile
      Object.assign(small, {width: picture.width, height: picture.height});
      pen.drawImage(picture, 0, 0);
      [scan, stride, pixels] = [chosen, picture.width, pen.getImageData(0, 0, picture.width, picture.height).data];
      turn();
    };
    picture.src = `data:image/png;base64,${chosen.png}`;
  }

  // Another plane starts at the slice with the most foreground, as the pictures do.
  function turn() {
    const through = data.planes[plane.value].through;
    slice.max = scan.shape[through] - 1;
    slice.value = scan.start[through];
    draw();
  }

  // The value of a channel at row y and column x of the picture.
  function reader() {
    const {through, down, right, flip_down, flip_right} = data.planes[plane.value], at = [0, 0, 0];
    const [rows, columns] = scan.shape;
    at[through] = Number(slice.value);
    return (y, x, channel) => {
      at[down] = flip_down ? scan.shape[down] - 1 - y : y;
      at[right] = flip_right ? scan.shape[right] - 1 - x : x;
      const top = Math.floor(at[2] / scan.across) * rows + at[0], left = at[2] % scan.across * columns + at[1];
      return pixels[4 * (top * stride + left) + channel];
    };
  }

  function draw() {
    if (!scan) return;
    const {name, through, down, right, edges} = data.planes[plane.value], value = reader();
    const height = scan.shape[down], width = scan.shape[right];
    const scale = 640 / Math.max(height * scan.spacing_mm[down], width * scan.spacing_mm[right]);
    canvas.height = Math.round(height * scan.spacing_mm[down] * scale);
    canvas.width = Math.round(width * scan.spacing_mm[right] * scale);
    const image = new ImageData(width, height), over = new ImageData(width, height), seen = new Set();
    const maps = data.maps.map(() => new Uint8Array(width * height));
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
      image.data.fill(value(y, x, 0), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
      maps.forEach((map, number) => {
        const c = value(y, x, number + 1);
        if (c && ofMap[number].checked && ofClass[c - 1].checked) seen.add(map[i] = c);
      });
      if (maps[0][i]) over.data.set([...data.classes[maps[0][i] - 1][2], 255 * fill.value], 4 * i);
    }
    Object.assign(small, {width, height});
    for (const [layer, smooth] of [[image, true], [over, false]]) {
      pen.putImageData(layer, 0, 0);
      context.imageSmoothingEnabled = smooth;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    }
    maps.forEach((map, number) => seen.forEach(c => contour(map, c, width, height, number > 0)));
    letters(edges);
    output.value = `${Number(slice.value) + 1} of ${scan.shape[through]}`;
    slice.setAttribute("aria-valuetext", output.value);
    const found = [...seen].sort().map(c => data.classes[c - 1][0]).join(", ") || "no class";
    canvas.setAttribute("aria-label", `${scan.title}, ${name} slice ${output.value}: ${found}`);
  }

  // Along the sides of the voxels where a class begins; dashed for the second map.
  function contour(map, c, width, height, dashed) {
    const right = canvas.width / width, down = canvas.height / height;
    const is = (y, x) => y >= 0 && x >= 0 && y < height && x < width && map[y * width + x] === c;
    context.beginPath();
    for (let y = 0; y <= height; y++) for (let x = 0; x <= width; x++) {
      const here = is(y, x);
      for (const [other, dy, dx] of [[is(y - 1, x), 0, 1], [is(y, x - 1), 1, 0]]) if (here !== other) {
        context.moveTo(x * right, y * down);
        context.lineTo((x + dx) * right, (y + dy) * down);
      }
    }
    context.setLineDash(dashed ? [right / 2, right / 2] : []);
    for (const [lineWidth, strokeStyle] of [[4, "#fff6"], [dashed ? 2.5 : 2, data.classes[c - 1][1]]]) {
      Object.assign(context, {lineWidth, strokeStyle});  // a light halo first, for blue on black
      context.stroke();
    }
  }

  function letters([top, bottom, left, right]) {
    const {width, height} = canvas;
    Object.assign(context, {font: "bold 22px sans-serif", textAlign: "center", textBaseline: "middle", lineWidth: 4,
                            strokeStyle: "#000", fillStyle: "#fff"});
    context.setLineDash([]);
    for (const [letter, x, y] of [[top, width / 2, 16], [bottom, width / 2, height - 14], [left, 14, height / 2],
                                  [right, width - 14, height / 2]]) {
      context.strokeText(letter, x, y);
      context.fillText(letter, x, y);
    }
  }

  const move = by => {
    const before = slice.value;
    slice.value = Number(before) + by;
    draw();
    return slice.value !== before;
  };
  const keys = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e4, End: 1e4};
  canvas.addEventListener("keydown", event => {
    if (event.key in keys) event.preventDefault(), move(keys[event.key]);
  });
  // At the first and last slice the wheel scrolls the page.
  canvas.addEventListener("wheel", event => move(Math.sign(event.deltaY)) && event.preventDefault(), {passive: false});
  let from = null;
  canvas.addEventListener("pointerdown", event => { from = event.clientX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", event => {
    const steps = from === null ? 0 : Math.trunc((event.clientX - from) / 8);  // pixels of a drag for one slice
    if (steps) from += 8 * steps, move(steps);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { from = null; });
  cases.addEventListener("change", load);
  plane.addEventListener("change", turn);
  slice.addEventListener("input", draw);
  fill.addEventListener("input", draw);
  const choose = () => {  // slices.html#<case>
    const named = data.cases.findIndex(c => c.id === decodeURIComponent(location.hash.slice(1)));
    cases.value = Math.max(named, 0);
    load();
  };
  addEventListener("hashchange", choose);
  choose();
}
