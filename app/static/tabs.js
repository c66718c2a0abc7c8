// Other tabs of this browser: what one changes, the others show.

const channel = new BroadcastChannel("parley");

export const changed = (conversation) => channel.postMessage({ conversation });

export function onChanged(then) {
  channel.onmessage = ({ data }) => then(data.conversation);
}
