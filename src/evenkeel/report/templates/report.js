(function () {
  "use strict";
  var options = { responsive: true, displaylogo: false, displayModeBar: false };

  // --- figures: each is drawn shortly before it comes into sight, all before printing

  function content(place) { return JSON.parse(place.querySelector("script").textContent); }
  function draw(place) {
    if (place.dataset.drawn) { return; }
    place.dataset.drawn = "1";
    var figure = content(place);
    Plotly.newPlot(place, figure.data, figure.layout, options).then(function () {
      var explorer = place.closest(".explorer");
      if (explorer && explorer.refresh) { explorer.refresh(place); }
    });
  }
  var places = document.querySelectorAll(".figure");
  function all() { places.forEach(draw); }
  if (window.IntersectionObserver) {
    var watch = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) { if (entry.isIntersecting) { draw(entry.target); watch.unobserve(entry.target); } });
    }, { rootMargin: "200px" });
    places.forEach(function (place) { watch.observe(place); });
    window.addEventListener("beforeprint", all);
  } else { all(); }

  // --- what a figure shows, as a file

  function save(name, text, type) {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type }));
    link.download = name;
    document.body.appendChild(link);
    link.click();
    link.remove();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }
  function plain(text) { // Plotly's labels are escaped, and broken by tags
    var box = new DOMParser().parseFromString(String(text).replace(/<br>/g, ", "), "text/html");
    return box.body.textContent;
  }
  function field(value) {
    if (value === null || value === undefined) { return ""; }
    var text = typeof value === "number" ? String(value) : plain(value);
    if (/^[=+\-@]/.test(text) && typeof value !== "number") { text = "'" + text; } // a spreadsheet would compute it
    return /[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }
  function list(values) { // Plotly packs numbers
    if (values && values.bdata !== undefined) {
      var bytes = Uint8Array.from(atob(values.bdata), function (c) { return c.charCodeAt(0); }).buffer;
      var kinds = { f8: Float64Array, f4: Float32Array, i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array };
      return Array.from(new kinds[values.dtype](bytes));
    }
    return values || [];
  }
  function table(data) {
    var rows = [["trace", "x", "y", "value", "text"]];
    data.forEach(function (trace, number) {
      var name = trace.name || trace.type + " " + (number + 1);
      if (trace.type === "heatmap") {
        trace.z.forEach(function (line, i) {
          list(line).forEach(function (value, k) { rows.push([name, trace.x[k], trace.y[i], value, ((trace.text || [])[i] || [])[k]]); });
        });
        return;
      }
      var x = list(trace.x), y = list(trace.y);
      for (var i = 0; i < Math.max(x.length, y.length); i++) { rows.push([name, x[i], y[i], "", (trace.text || [])[i]]); }
    });
    return rows.map(function (row) { return row.map(field).join(","); }).join("\n") + "\n";
  }
  document.addEventListener("click", function (event) {
    var kind = event.target.dataset && event.target.dataset.save;
    if (!kind) { return; }
    var place = event.target.closest(".panel").querySelector(".figure");
    draw(place);
    var name = "evenkeel-" + place.dataset.name;
    if (kind === "csv") { save(name + ".csv", table(place.data || content(place).data), "text/csv"); return; }
    Plotly.downloadImage(place, { format: "svg", filename: name, width: place.clientWidth, height: place.clientHeight });
  });

  // --- maps of components: measure and part of training

  document.querySelectorAll(".explorer").forEach(function (explorer) {
    var read, touched = false; // of many values, which are read once somebody asks for them
    function values() { read = read || JSON.parse(explorer.querySelector(".values").textContent); return read; }
    var choice = explorer.querySelector("select"), slider = explorer.querySelector("input"), said = explorer.querySelector("output");
    var how = explorer.querySelector("p.how");
    var panels = Array.from(explorer.querySelectorAll(".panel"));
    explorer.refresh = function (place) {
      if (!touched || !place.dataset.drawn) { return; } // as it was drawn: all of training
      var chosen = values()[choice.value], parts = chosen.maps[panels.indexOf(place.closest(".panel"))];
      if (!parts) { return; }
      var part = parts[Math.min(Number(slider.value), parts.length - 1)];
      Plotly.restyle(place, { z: [part], zmin: chosen.span[0], zmax: chosen.span[1], "colorbar.title.text": chosen.unit });
    };
    function changed() {
      touched = true;
      var parted = values()[choice.value].maps[0].length > 1, part = Number(slider.value);
      slider.disabled = !parted;
      said.textContent = !parted || part === 0 ? "all of it" : (part - 1) * 10 + " to " + part * 10 + " %";
      how.textContent = choice.selectedOptions[0].dataset.how;
      explorer.querySelectorAll(".figure").forEach(explorer.refresh);
    }
    choice.addEventListener("change", changed);
    slider.addEventListener("input", changed);
  });

  // --- the list of runs

  var filter = document.querySelector(".runs-filter"), rows = Array.from(document.querySelectorAll("table.runs tbody tr"));
  function narrow() {
    var wanted = filter.querySelector("input").value.toLowerCase().split(/\s+/), status = filter.querySelector("select").value, shown = 0;
    rows.forEach(function (row) {
      var text = row.textContent.toLowerCase();
      var fits = (!status || row.dataset.status === status) && wanted.every(function (word) { return text.includes(word); });
      row.hidden = !fits;
      shown += fits;
    });
    filter.querySelector("span").textContent = shown + " of " + rows.length + " runs";
  }
  filter.addEventListener("input", narrow);

  // --- one run

  var drill, dialog = document.querySelector("dialog"), body = dialog.querySelector(".body");
  function element(tag, text) { var made = document.createElement(tag); if (text !== undefined) { made.textContent = text; } return made; }
  function words(title, pairs) {
    var box = element("div"), terms = element("dl");
    box.appendChild(element("h4", title));
    pairs.forEach(function (pair) { terms.appendChild(element("dt", pair[0])); terms.appendChild(element("dd", pair[1])); });
    box.appendChild(terms);
    return box;
  }
  function curve(title, pairs, log) {
    var box = element("div"), place = element("div");
    box.className = "panel";
    box.appendChild(element("h4", title));
    place.style.height = "200px";
    box.appendChild(place);
    var axis = { gridcolor: "rgba(128,136,144,.28)", zeroline: false, automargin: true };
    Plotly.newPlot(place, [{ x: pairs[0], y: pairs[1], mode: "lines", line: { color: "#0072B2" } }], {
      margin: { l: 10, r: 10, t: 6, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "#808890", size: 11 },
      xaxis: Object.assign({ title: { text: "step" } }, axis), yaxis: Object.assign({ type: log ? "log" : "linear" }, axis), showlegend: false
    }, options);
    return box;
  }
  function show(number) {
    drill = drill || JSON.parse(document.getElementById("drill").textContent);
    var run = drill.runs[number], curves = element("div"), columns = element("div");
    dialog.querySelector("h3").textContent = run.name;
    body.replaceChildren();
    dialog.showModal();
    curves.className = "panels";
    columns.className = "columns";
    body.appendChild(curves);
    [["loss", "training loss", false], ["norm", "gradient norm, all components", true], ["score", "validation score", false], ["rate", "learning rate", false]].forEach(function (one) {
      if (run[one[0]]) { curves.appendChild(curve(one[1], run[one[0]], one[2])); }
    });
    columns.appendChild(words("what came of it", run.said));
    columns.appendChild(words("recipe", drill.texts[run.recipe].concat([["seeds", run.seeds], ["run", run.id]])));
    columns.appendChild(words("made with", drill.texts[run.made]));
    body.appendChild(columns);
    if (run.error) { body.appendChild(element("h4", "error")); body.appendChild(element("pre", run.error)); }
    if (run.loss) {
      var log = element("details"), lines = element("pre");
      log.appendChild(element("summary", "log"));
      lines.textContent = "step\tloss\tlearning rate\n" + run.loss[0].map(function (step, i) {
        return [step, run.loss[1][i], run.rate ? run.rate[1][i] : ""].join("\t");
      }).join("\n");
      log.appendChild(lines);
      body.appendChild(log);
    }
  }
  document.addEventListener("click", function (event) {
    var number = event.target.dataset && event.target.dataset.run;
    if (number !== undefined) { show(Number(number)); }
  });
})();
