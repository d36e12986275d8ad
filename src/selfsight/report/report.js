"use strict";
// Figures come without colours; each trace names its role, and the theme's custom properties colour it.
(function () {
  const wanted = new URLSearchParams(location.search).get("theme");
  if (wanted === "dark" || wanted === "light") document.documentElement.dataset.theme = wanted;

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const role = (trace) => colour(trace.meta.role.replace(":", "-"));
  const narrow = () => window.innerWidth <= 640;

  function axis(own) {
    return Object.assign({
      gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), tickcolor: colour("line"),
      automargin: true, nticks: 5, fixedrange: narrow(),
    }, own);
  }

  function dressed(id) {
    const figure = figures[id], map = id === "map";
    const data = figure.data.map((trace) => Object.assign({}, trace, {
      line: Object.assign({}, trace.line, { color: role(trace) }),
      marker: Object.assign({}, trace.marker, { color: role(trace) }, map && narrow() ? { size: 4 } : {}),
    }));
    const own = figure.layout;
    const layout = Object.assign({}, own, {
      font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("soft") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: map ? { l: 4, r: 4, t: 4, b: 4 } : { l: 6, r: 8, t: 8, b: 6 },
      xaxis: axis(Object.assign({ showgrid: false }, own.xaxis)), yaxis: axis(own.yaxis),
      showlegend: Boolean(own.showlegend), dragmode: narrow() ? false : (map ? "pan" : "zoom"),
      legend: { orientation: "h", y: -0.02, yanchor: "top", itemsizing: "constant", font: { color: colour("ink"), size: 12 } },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
      shapes: (own.shapes || []).map((s) => Object.assign({}, s, { line: { color: colour("second"), width: 1, dash: "dot" } })),
      annotations: (own.annotations || []).map((a) => Object.assign({}, a, {
        showarrow: false, font: { color: colour("second"), size: 11 },
      })),
    });
    return { data, layout };
  }

  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  const plots = Array.from(document.querySelectorAll(".plot"));
  function draw() {
    return Promise.all(plots.map((plot) => {
      const figure = dressed(plot.dataset.figure);
      return Plotly.react(plot, figure.data, figure.layout, config);
    }));
  }

  function thumbnails(plot) {
    const hover = document.getElementById("hover"), thumb = hover.querySelector(".thumb"), text = hover.querySelector("p");
    const captions = JSON.parse(document.getElementById("captions").textContent);
    const cell = Number(plot.dataset.cell), columns = Number(plot.dataset.columns), size = 146;
    const sprite = document.getElementById("sprite").src;
    thumb.style.backgroundSize = (columns * size) + "px auto";
    if (cell * 3 <= size) thumb.style.imageRendering = "pixelated";
    function show(event) {
      const point = event.points[0], place = point.customdata;
      if (!thumb.style.backgroundImage) thumb.style.backgroundImage = "url(" + sprite + ")";
      thumb.style.backgroundPosition = (-(place % columns) * size) + "px " + (-Math.floor(place / columns) * size) + "px";
      text.textContent = captions[place];
      hover.hidden = false;
      const frame = plot.parentElement.getBoundingClientRect(), inside = plot.getBoundingClientRect();
      const x = point.xaxis.l2p(point.x) + point.xaxis._offset + inside.left - frame.left;
      const y = point.yaxis.l2p(point.y) + point.yaxis._offset + inside.top - frame.top;
      hover.style.left = Math.max(6, Math.min(x + 14, frame.width - hover.offsetWidth - 6)) + "px";
      hover.style.top = Math.max(6, Math.min(y + 14, frame.height - hover.offsetHeight - 6)) + "px";
    }
    plot.on("plotly_hover", show);
    plot.on("plotly_click", show);
    plot.on("plotly_unhover", () => { hover.hidden = true; });
  }

  draw().then(() => {
    const map = document.getElementById("plot-map");
    if (map) thumbnails(map);
    document.documentElement.dataset.drawn = String(plots.length);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
