// The page stays as it is without this. With it, what has changed is fetched anew and put in place.
"use strict";

const main = () => document.querySelector("main");
const said = document.getElementById("live");
let busy = false;
let again = false;

async function renew() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!fresh) return;
    // Whoever moves by keyboard stays where they are.
    const focus = document.activeElement && document.activeElement.id;
    main().replaceWith(document.adoptNode(fresh));
    const back = focus && document.getElementById(focus);
    if (back) back.focus({ preventScroll: true });
  } catch {
    // The operator is away; its next word comes when it is back.
  } finally {
    busy = false;
    if (again) {
      again = false;
      renew();
    }
  }
}

const events = new EventSource("events");
events.addEventListener("changed", renew);
events.addEventListener("open", () => {
  said.textContent = "live";
  // Whatever has changed before the events came is not among them.
  renew();
});
events.addEventListener("error", () => {
  said.textContent = "not connected: this may be old";
});
