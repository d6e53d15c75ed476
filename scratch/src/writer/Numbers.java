import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Writes numbers to a topic with Kafka's own client: see numbers.c, which does the same.
 *
 * <p>Numbers BROKERS TOPIC PARTITIONS INTERVAL_US FILE [NAME=VALUE ...]
 */
public class Numbers {
    public static void main(String[] args) throws Exception {
        var topic = args[1];
        int partitions = Integer.parseInt(args[2]);
        long interval = Long.parseLong(args[3]) * 1000;
        var acks = new PrintWriter(args[4], StandardCharsets.UTF_8);
        var stopping = new AtomicBoolean();
        var main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping.set(true);
            try {
                main.join();
            } catch (InterruptedException ended) {
                Thread.currentThread().interrupt();
            }
        }));

        long number = 0;
        try (var producer = new KafkaProducer<byte[], byte[]>(settings(args))) {
            long next = System.nanoTime();
            while (!stopping.get()) {
                for (int partition = 0; partition < partitions; partition++) {
                    send(producer, topic, partition, number, acks);
                }
                number++;
                next += interval;
                for (long left; (left = next - System.nanoTime()) > 0; ) {
                    LockSupport.parkNanos(left);
                }
                acks.flush();
            }
            producer.flush();
        }
        acks.println("done " + number * partitions);
        acks.close();
    }

    private static Properties settings(String[] args) {
        var settings = new Properties();
        settings.put("bootstrap.servers", args[0]);
        settings.put("acks", "all");
        settings.put("enable.idempotence", "true");
        settings.put("key.serializer", ByteArraySerializer.class.getName());
        settings.put("value.serializer", ByteArraySerializer.class.getName());
        for (int index = 5; index < args.length; index++) {
            var setting = args[index].split("=", 2);
            settings.put(setting[0], setting[1]);
        }
        return settings;
    }

    private static void send(
            KafkaProducer<byte[], byte[]> producer, String topic, int partition, long number, PrintWriter acks) {
        var value = ("java " + number).getBytes(StandardCharsets.UTF_8);
        producer.send(new ProducerRecord<>(topic, partition, null, value), (metadata, failure) -> {
            if (failure == null) {
                var now = Instant.now();
                long micros = now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
                acks.println("ack " + partition + " " + metadata.offset() + " " + number + " " + micros);
            } else {
                acks.println("failed " + partition + " " + number + " " + failure.getClass().getSimpleName());
            }
        });
    }
}
