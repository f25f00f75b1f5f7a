// The page: choose a task, give an input, see the answer. No state but the form's.

import { record } from "./record.js";
import { make, showAnswer, showNetwork, size } from "./show.js";

const at = (id) => document.getElementById(id);
const KINDS = {
  text: { name: "texts", hint: "", written: true },
  tree: { name: "trees", hint: "", written: true },
  label: { name: "classes", hint: "", written: true },
  image: { name: "pictures", hint: "PNG, JPEG, WebP, GIF, BMP or TIFF", accept: "image/*" },
  audio: { name: "sounds", hint: "WAV, FLAC, Ogg, MP3 or AIFF", accept: "audio/*" },
  video: { name: "videos", hint: "MP4, WebM, AVI, or an animated PNG or GIF", accept: "video/*,image/gif,image/png" },
};
const PROBLEM = { cause: "the server does not answer", value: "", remedy: "is it still running?" };
let listing = { tasks: [], networks: [], limits: {} };
let file = null;
let recording = null;

function headers() {
  const token = at("token").value;
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() }).catch(() => null);
  const body = await answer?.json().catch(() => null);
  if (answer?.ok && body) return body;
  if (answer?.status === 401) askForToken();
  throw body?.cause ? body : PROBLEM;
}

function askForToken() {
  at("token-field").open = true;
  at("token").focus();
}

async function load() {
  try {
    listing = await call("/v1/tasks");
  } catch (problem) {
    showProblem(problem);
    at("model").textContent = "";
    return;
  }
  const sizes = listing.networks.map((network) => `${size(network.parameters)}`);
  const counts = `${listing.tasks.length} tasks, ${listing.networks.length} network`;
  const several = listing.networks.length > 1 ? "s" : "";
  at("model").textContent = `${counts}${several} of ${sizes.join(", ")} parameters`;
  at("problem").hidden = true;
  at("send").disabled = false;
  listTasks();
}

function listTasks() {
  const modalities = [...new Set(listing.tasks.map((task) => task.modality))];
  at("task").replaceChildren();
  for (const modality of modalities) {
    const group = make("optgroup", { parent: at("task") });
    group.label = KINDS[modality].name;
    const tasks = listing.tasks.filter((task) => task.modality === modality);
    for (const task of tasks) make("option", { text: task.name, parent: group }).value = `task:${task.name}`;
    if (tasks.length > 1) {
      const all = make("option", { text: `every task of ${KINDS[modality].name}`, parent: group });
      all.value = `modality:${modality}`;
    }
  }
  chooseTask();
}

function chosen() {
  const [kind, name] = at("task").value.split(":");
  const tasks = listing.tasks.filter((task) => (kind === "task" ? task.name : task.modality) === name);
  return { kind, name, tasks, modality: tasks[0].modality };
}

function chooseTask() {
  const { tasks, modality } = chosen();
  const isWritten = KINDS[modality].written === true;
  const choices = [...new Set(tasks.flatMap((task) => task.choices))];
  at("text-field").hidden = !isWritten || choices.length > 0;
  at("choice-field").hidden = choices.length === 0;
  at("choice").replaceChildren(...choices.map((name) => new Option(name)));
  at("file-field").hidden = isWritten;
  at("file").accept = KINDS[modality].accept ?? "";
  at("record").hidden = modality !== "audio" || !navigator.mediaDevices || !window.MediaRecorder;
  at("file-label").textContent = { image: "Picture", audio: "Sound", video: "Video" }[modality] ?? "File";
  at("file-hint").textContent = `Choose a file, or drop it here: ${KINDS[modality].hint}${bounds(tasks[0])}.`;
  at("task-hint").textContent = hint(tasks);
  takeFile(null);
  const subtasks = [...new Set(tasks.flatMap((task) => task.subtasks))];
  at("subtasks").hidden = subtasks.length === 0;
  at("subtask-choices").replaceChildren();
  for (const name of subtasks) {
    const label = make("label", { parent: at("subtask-choices") });
    const box = make("input", { parent: label });
    box.type = "checkbox";
    box.value = name;
    label.append(` ${name}`);
  }
}

function bounds(task) {
  return task.takes.max_s ? `, up to ${task.takes.max_s} s` : "";
}

function hint(tasks) {
  if (tasks.length > 1) return tasks.map((task) => task.name).join(", ");
  const [{ answers, classes, values }] = tasks;
  const names = classes.length ? classes : values;
  const shown = names.slice(0, 12).join(", ") + (names.length > 12 ? ", ..." : "");
  return { text: "Answers with a text.", tree: "Answers with a parse tree." }[answers] ?? `Answers with ${shown}.`;
}

function takeFile(given) {
  file = given;
  const preview = at("preview");
  for (const node of preview.children) URL.revokeObjectURL(node.src);
  preview.replaceChildren();
  if (!given) {
    at("file").value = "";
    return;
  }
  const kind = given.type.split("/")[0];
  const name = { image: "img", audio: "audio", video: "video" }[kind];
  if (name) {
    const node = make(name, { parent: preview });
    node.src = URL.createObjectURL(given);
    if (name === "img") node.alt = given.name;
    else node.controls = true;
  }
  make("p", { text: `${given.name}, ${(given.size / 1024).toFixed(1)} KB`, cls: "hint", parent: preview });
}

async function toggleRecording() {
  const button = at("record");
  if (recording) {
    recording.stop();
    return;
  }
  try {
    recording = await record(chosen().tasks[0].takes.max_s ?? listing.limits.max_sound_s);
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Stop";
    takeFile(await recording.file);
    at("status").textContent = "Recorded.";
  } catch (error) {
    showProblem({ cause: "the microphone cannot be used", value: String(error.message ?? error), remedy: "allow it, or choose a file" });
  } finally {
    recording = null;
    button.setAttribute("aria-pressed", "false");
    button.textContent = "Record";
  }
}

function question() {
  const { kind, name, modality } = chosen();
  const form = new FormData();
  form.set(kind, name);
  for (const box of at("subtask-choices").querySelectorAll(":checked")) form.append("subtasks", box.value);
  if (!at("choice-field").hidden) form.set("input", at("choice").value);
  else if (KINDS[modality].written) form.set("input", at("text").value);
  else if (file) form.set("file", file);
  return form;
}

async function ask(event) {
  event.preventDefault();
  if (!KINDS[chosen().modality].written && !file) {
    showProblem({ cause: "there is no file", value: "", remedy: "choose one, drop one, or record" });
    return;
  }
  at("send").disabled = true;
  at("status").textContent = "Asking...";
  try {
    await showAnswers(await call("/v1/predict", { method: "POST", body: question() }));
    at("status").textContent = "Answered.";
  } catch (problem) {
    showProblem(problem);
    at("status").textContent = "";
  } finally {
    at("send").disabled = false;
  }
}

async function showAnswers({ answers, networks, seconds }) {
  at("problem").hidden = true;
  at("empty").hidden = true;
  at("answer-list").replaceChildren();
  at("network-list").replaceChildren();
  for (const answer of answers) {
    const task = listing.tasks.find((one) => one.name === answer.task);
    await showAnswer(answer, { file, task, parent: at("answer-list") });
  }
  for (const network of networks) showNetwork(network, { seconds, parent: at("network-list") });
}

function showProblem({ cause, value, remedy }) {
  const box = at("problem");
  box.replaceChildren();
  make("strong", { text: cause, parent: box });
  if (value) make("p", { text: value, parent: box });
  if (remedy) make("p", { text: remedy, parent: box });
  box.hidden = false;
  at("empty").hidden = true;
  at("answer-list").replaceChildren();
  at("network-list").replaceChildren();
}

at("ask").addEventListener("submit", ask);
at("task").addEventListener("change", chooseTask);
at("file").addEventListener("change", () => takeFile(at("file").files[0] ?? null));
at("record").addEventListener("click", toggleRecording);
at("use-token").addEventListener("click", load);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", over);
    if (name === "drop" && event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
  });
}
load();
