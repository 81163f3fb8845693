// Search where the pages are opened as files: browsers start no Worker there, so Material's search
// runs in a hidden frame in its place. `IFrameWorker` is the name by which its script knows that.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    #waiting = []; // messages from before the frame had loaded
    #frame = document.createElement("iframe");

    constructor(url) {
      super();
      const setup = "var postMessage = (data) => parent.postMessage(data, '*')";
      this.#frame.hidden = true;
      this.#frame.srcdoc = `<script>${setup}</script><script src="${url}"></script>`;
      this.#frame.onload = () => {
        const messages = this.#waiting;
        this.#waiting = null;
        messages.forEach((data) => this.postMessage(data));
      };
      addEventListener("message", ({ source, data }) => {
        if (source === this.#frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data }));
      });
      document.body.append(this.#frame);
    }

    postMessage(data) {
      if (this.#waiting) this.#waiting.push(data);
      else this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
  window.Worker = window.IFrameWorker;
}
