/*
 * Parley with nothing but the JDK (17 or later):
 *
 *     java examples/java/JdkChat.java http://localhost:8000
 *
 * Each answer is printed as it comes, as JSON: read it with the JSON library of your choice.
 */
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.stream.Stream;

public class JdkChat {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] args) throws Exception {
        URI chat = URI.create(args.length > 0 ? args[0] : "http://localhost:8000").resolve("/v1/chat/completions");

        String[] questions = {"What is a tide?", "What is the opposite of hot?", "How many days are in a week?"};
        for (String question : questions) {
            HttpResponse<String> answer = CLIENT.send(request(chat, question, false), BodyHandlers.ofString());
            System.err.println(answer.version() + " " + answer.statusCode());
            System.out.println(answer.body());
        }

        HttpResponse<Stream<String>> answer = CLIENT.send(request(chat, "Describe the sea.", true), BodyHandlers.ofLines());
        System.err.println(answer.version() + " " + answer.statusCode());
        answer.body()
                .filter(line -> line.startsWith("data: ")) // the others are blank, or keep-alives
                .map(line -> line.substring("data: ".length()))
                .takeWhile(data -> !data.equals("[DONE]"))
                .forEach(System.out::println);
    }

    private static HttpRequest request(URI uri, String question, boolean stream) {
        String body = """
                {"messages": [{"role": "user", "content": "%s"}], "max_tokens": 20, "stream": %s}
                """.formatted(question, stream);
        return HttpRequest.newBuilder(uri)
                .header("Content-Type", "application/json")
                .header("Authorization", "Bearer " + System.getenv().getOrDefault("PARLEY_API_KEY", "none"))
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
    }
}
