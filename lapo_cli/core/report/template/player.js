"use strict";
// Films are sprite sheets: each canvas shows one cell of its sheet. All films of a player run together.
const SECONDS_PER_STEP = 1 / 15;
for (const player of document.querySelectorAll(".player")) {
  const films = [...player.querySelectorAll(".film")].map((film) => {
    const canvas = film.querySelector("canvas");
    return {
      sheet: film.querySelector("img"), canvas, context: canvas.getContext("2d"),
      columns: Number(canvas.dataset.columns), frames: Number(canvas.dataset.frames),
    };
  });
  const button = player.querySelector("button");
  const slider = player.querySelector("input");
  const output = player.querySelector("output");
  const title = button.getAttribute("aria-label").replace(/^Play: /, "");
  const every = Number(player.dataset.every);
  const last = Math.max(...films.map((film) => film.frames)) - 1;
  let timer = null;
  slider.max = last;

  function show(frame) {
    for (const film of films) {
      const cell = Math.min(frame, film.frames - 1);
      const { width, height } = film.canvas;
      film.context.drawImage(
        film.sheet, (cell % film.columns) * width, Math.floor(cell / film.columns) * height, width, height, 0, 0, width, height);
    }
    slider.value = frame;
    output.textContent = `step ${frame * every} of ${last * every}`;
    slider.setAttribute("aria-valuetext", output.textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    button.setAttribute("aria-label", `Play: ${title}`);
  }

  function play() {
    if (Number(slider.value) >= last) show(0);
    timer = setInterval(() => {
      if (Number(slider.value) >= last) stop();
      else show(Number(slider.value) + 1);
    }, 1000 * Math.max(SECONDS_PER_STEP * every, last < 20 ? 0.3 : 0));
    button.textContent = "Pause";
    button.setAttribute("aria-label", `Pause: ${title}`);
  }

  button.addEventListener("click", () => (timer === null ? play() : stop()));
  slider.addEventListener("input", () => { if (timer !== null) stop(); show(Number(slider.value)); });
  Promise.all(films.map((film) => film.sheet.decode())).then(() => {
    player.dataset.ready = "yes";
    show(Math.min(Number(player.dataset.start), last));
  });
}
