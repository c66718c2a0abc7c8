/*
 * Parley through OkHttp, with the time limits that OkHttp comes with: Parley sends a keep-alive every 5 seconds, so they
 * hold however long an answer waits for its turn. On Debian (libokhttp-java):
 *
 *     java -cp /usr/share/java/okhttp.jar:/usr/share/java/okio.jar examples/java/OkHttpChat.java http://localhost:8000
 *
 * Each event is printed as it comes, as JSON: read it with the JSON library of your choice. With the okhttp-sse artifact,
 * EventSources.createFactory(client) takes the place of read().
 */
import java.io.IOException;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;
import okio.BufferedSource;

public class OkHttpChat {
    private static final MediaType JSON = MediaType.get("application/json");
    private static final OkHttpClient CLIENT = new OkHttpClient();

    public static void main(String[] args) throws IOException {
        String server = args.length > 0 ? args[0] : "http://localhost:8000";

        // as OpenAI's clients ask
        read(server + "/v1/chat/completions", """
                {"messages": [{"role": "user", "content": "Describe the sea."}], "max_tokens": 20, "stream": true}""");

        // the simple route, which remembers: a next message may carry the answer's conversation_id
        read(server + "/chat/new/message/", """
                {"prompt": "What is a tide?", "max_tokens": 20, "stream": true}""");
    }

    private static void read(String url, String body) throws IOException {
        Request request = new Request.Builder()
                .url(url)
                .header("Authorization", "Bearer " + System.getenv().getOrDefault("PARLEY_API_KEY", "none"))
                .post(RequestBody.create(JSON, body))
                .build();
        try (Response response = CLIENT.newCall(request).execute()) {
            if (!response.isSuccessful()) {
                throw new IOException(response.code() + " " + response.body().string());
            }
            printEvents(response.body().source());
        }
    }

    private static void printEvents(BufferedSource source) throws IOException {
        for (String line = source.readUtf8Line(); line != null; line = source.readUtf8Line()) {
            if (line.startsWith("data: ") && !line.equals("data: [DONE]")) { // the others are blank, or keep-alives
                System.out.println(line.substring("data: ".length()));
            }
        }
    }
}
