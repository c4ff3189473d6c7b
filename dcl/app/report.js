"use strict";
// Names of clusters, kept in this browser and saved as CSV; and the map. Data stand in #data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = named(data.run);
  if (data.rows) map(data, names);

  function named(run) {
    const key = "dcl names " + run, status = document.getElementById("kept");
    const boxes = [...document.querySelectorAll("input[data-cluster]")];
    const names = {};
    let stored = {};
    try { stored = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* not allowed */ }
    const show = (k) => document.querySelectorAll(`[data-named="${k}"]`)
      .forEach((e) => { e.textContent = names[k]; });
    for (const box of boxes) {
      const k = box.dataset.cluster;
      box.value = names[k] = typeof stored[k] === "string" ? stored[k] : "";
      show(k);
      box.addEventListener("input", () => {
        names[k] = box.value;
        show(k);
        try {
          localStorage.setItem(key, JSON.stringify(names));
          status.textContent = "Kept in this browser.";
        } catch {
          status.textContent = "This browser keeps nothing: save before you leave.";
        }
      });
    }
    document.getElementById("save").addEventListener("click", () => {
      const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
      const lines = boxes.map((b) => b.dataset.cluster + "," + quoted(b.value.trim()));
      const text = ["cluster,name", ...lines].join("\n") + "\n";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = "clusters.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    return names;
  }

  function map(data, names) {
    const canvas = document.querySelector("#map canvas"), pen = canvas.getContext("2d");
    const [tip, ring] = ["tip", "ring"].map((id) => document.getElementById(id));
    const sheet = document.getElementById("thumbs");
    const n = data.rows.length, small = 3, reach = 14;
    const mid = [0, 0], whole = [Math.max(...data.x), Math.max(...data.y)];
    let zoom = 1, chosen = -1, drag = null, pictures = data.pictures && sheet;
    showAll();

    function showAll() { zoom = 1; mid[0] = whole[0] / 2; mid[1] = whole[1] / 2; }
    function scale() {
      const fit = Math.min((canvas.clientWidth - 30) / (whole[0] || 1),
        (canvas.clientHeight - 30) / (whole[1] || 1));
      return zoom * fit;
    }
    function place(i) {
      const s = scale();
      return [canvas.clientWidth / 2 + s * (data.x[i] - mid[0]),
        canvas.clientHeight / 2 - s * (data.y[i] - mid[1])];
    }
    function draw() {
      const density = window.devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * density;
      canvas.height = canvas.clientHeight * density;
      pen.scale(density, density);
      const clusters = new Map();
      for (let i = 0; i < n; i++) {
        const k = data.cluster[i], [x, y] = place(i);
        if (!clusters.has(k)) clusters.set(k, { xs: [], ys: [], dots: new Path2D() });
        const { xs, ys, dots } = clusters.get(k);
        xs.push(x);
        ys.push(y);
        dots.moveTo(x + small, y);
        dots.arc(x, y, small, 0, 7);
      }
      for (const [k, { dots }] of clusters) {
        pen.fillStyle = data.colours[k % data.colours.length];
        pen.fill(dots);
      }
      if (pictures && sheet.complete) drawPictures();
      const median = (a) => a.sort((p, q) => p - q)[a.length >> 1];
      pen.font = "13px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (const [k, { xs, ys }] of clusters) {
        const x = median(xs), y = median(ys), word = names[k] ? `${k} ${names[k]}` : String(k);
        const wide = pen.measureText(word).width + 8;
        pen.fillStyle = "#303030cc"; // a white word on a dark box reads on any page
        pen.fillRect(x - wide / 2, y - 9, wide, 18);
        pen.fillStyle = "#fff";
        pen.fillText(word, x, y);
      }
    }
    function drawPictures() { // in the order of the rows, where no other picture is yet
      const { columns, width, height, gap } = data.thumbs;
      const side = Math.min(56, 24 * Math.sqrt(zoom)), shrink = side / Math.max(width, height);
      const wide = width * shrink, high = height * shrink, cells = new Map();
      for (let i = 0; i < n; i++) {
        const [x, y] = place(i), across = Math.floor(x / side), down = Math.floor(y / side);
        if (x < 0 || y < 0 || x > canvas.clientWidth || y > canvas.clientHeight) continue;
        let free = true;
        for (let a = across - 1; free && a <= across + 1; a++) {
          for (let b = down - 1; free && b <= down + 1; b++) {
            const other = cells.get(a + " " + b);
            free = !other || Math.abs(other[0] - x) > side + 3 || Math.abs(other[1] - y) > side + 3;
          }
        }
        if (!free) continue;
        cells.set(across + " " + down, [x, y]);
        pen.fillStyle = data.colours[data.cluster[i] % data.colours.length];
        pen.fillRect(x - wide / 2 - 2, y - high / 2 - 2, wide + 4, high + 4);
        pen.drawImage(sheet, (i % columns) * (width + gap), Math.floor(i / columns) * (height + gap),
          width, height, x - wide / 2, y - high / 2, wide, high);
      }
    }
    function nearest(x, y, within) {
      let best = -1, least = within * within;
      for (let i = 0; i < n; i++) {
        const [a, b] = place(i), d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least) { best = i; least = d; }
      }
      return best;
    }
    function choose(i) {
      if (i === chosen) return;
      chosen = i;
      ring.hidden = tip.hidden = i < 0;
      if (i >= 0) {
        const k = data.cluster[i], words = document.createElement("div");
        const name = names[k] ? ` (${names[k]})` : "";
        words.textContent = `${data.names[i]}: cluster ${k}${name}, ` +
          `confidence ${data.confidence[i].toFixed(2)}`;
        tip.replaceChildren(...(sheet ? [thumb(i)] : []), words);
        const [x, y] = place(i);
        ring.style.left = x + "px";
        ring.style.top = y + "px";
        const right = x > canvas.clientWidth / 2;
        const low = y > canvas.clientHeight / 2;
        tip.style.left = (right ? Math.max(0, x - tip.offsetWidth - 12) :
          Math.min(x + 12, canvas.clientWidth - tip.offsetWidth)) + "px";
        tip.style.top = (low ? Math.max(0, y - tip.offsetHeight - 12) : y + 12) + "px";
      }
    }
    function thumb(i) {
      const { columns, width, height, gap } = data.thumbs, one = document.createElement("canvas");
      one.width = width;
      one.height = height;
      one.className = width < 32 ? "pixels" : "";
      const x = (i % columns) * (width + gap), y = Math.floor(i / columns) * (height + gap);
      one.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
      return one;
    }
    function zoomBy(factor, x, y) {
      const before = scale();
      zoom = Math.min(64, Math.max(1, zoom * factor));
      if (zoom === 1) showAll();
      else if (x === undefined) centre(chosen < 0 ? middle() : chosen);
      else { // what is below the pointer stays there
        mid[0] += (x - canvas.clientWidth / 2) * (1 / before - 1 / scale());
        mid[1] += (canvas.clientHeight / 2 - y) * (1 / before - 1 / scale());
      }
      canvas.style.touchAction = zoom > 1 ? "none" : "pan-y";
      redraw();
    }
    function centre(i) { mid[0] = data.x[i]; mid[1] = data.y[i]; }
    function redraw() { choose(-1); draw(); }
    function move(dx, dy) {
      mid[0] = Math.min(whole[0], Math.max(0, mid[0] + dx / scale()));
      mid[1] = Math.min(whole[1], Math.max(0, mid[1] + dy / scale()));
      redraw();
    }
    function middle() { return nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity); }
    function next(from, [right, up]) { // the nearest dot in a direction, within 45 degrees
      let best = from, least = Infinity;
      for (let i = 0; i < n; i++) {
        const x = data.x[i] - data.x[from], y = data.y[i] - data.y[from];
        const along = x * right + y * up, d = x * x + y * y;
        if (along > 0 && d <= 2 * along * along && d < least) { best = i; least = d; }
      }
      return best;
    }

    canvas.style.touchAction = "pan-y";
    canvas.addEventListener("pointerdown", (e) => {
      drag = [e.clientX, e.clientY];
      canvas.setPointerCapture(e.pointerId);
      choose(nearest(e.offsetX, e.offsetY, reach));
    });
    canvas.addEventListener("pointerup", () => { drag = null; });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("pointermove", (e) => {
      if (drag && zoom > 1) {
        move(drag[0] - e.clientX, e.clientY - drag[1]);
        drag = [e.clientX, e.clientY];
      }
      choose(nearest(e.offsetX, e.offsetY, reach));
    });
    canvas.addEventListener("pointerleave", () => choose(-1));
    canvas.addEventListener("wheel", (e) => {
      if (!e.ctrlKey && document.activeElement !== canvas) return; // else the page would not scroll
      e.preventDefault();
      zoomBy(2 ** (-e.deltaY / 200), e.offsetX, e.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1],
        ArrowDown: [0, -1] };
      const zooms = { "+": 2, "=": 2, "-": 0.5, 0: 0 };
      let here = chosen < 0 ? middle() : chosen;
      if (e.key in steps) here = chosen < 0 ? here : next(here, steps[e.key]);
      else if (e.key in zooms) zoomBy(zooms[e.key]);
      else return;
      e.preventDefault();
      if (zoom > 1) { centre(here); redraw(); }
      choose(here);
    });
    const toggle = document.getElementById("pictures");
    toggle?.addEventListener("click", () => {
      pictures = !pictures;
      toggle.setAttribute("aria-pressed", String(Boolean(pictures)));
      redraw();
    });
    if (pictures && !sheet.complete) sheet.addEventListener("load", draw);
    document.querySelectorAll("[data-zoom]").forEach((button) =>
      button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom))));
    document.querySelectorAll("input[data-cluster]").forEach((box) =>
      box.addEventListener("input", draw));
    window.addEventListener("resize", redraw);
    draw();
  }
})();
