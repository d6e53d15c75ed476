// What writes to a cluster and reads from it while `cargo xtask bench --only cluster` measures:
// Kafka's own client, the same for both sides.
//
// Commands come in on standard input, one a line; each is answered with one line, `ok …` or
// `error …`. The process ends with its input.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionInfo;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Load {
    private static final String TOPIC = "bench";
    private static final int RECORD_BYTES = 1024;
    private static final long LIMIT_NS = TimeUnit.SECONDS.toNanos(60);

    private final String servers;
    private final Admin admin;
    /** The first thing that went wrong in a callback. */
    private final AtomicReference<Exception> failure = new AtomicReference<>();
    private int partitions;
    private Steady steady;

    private Load(String servers) {
        this.servers = servers;
        this.admin = Admin.create(common());
    }

    public static void main(String[] arguments) throws Exception {
        Load load = new Load(arguments[0]);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String answer;
            try {
                answer = "ok " + load.obey(line.trim().split(" "));
            } catch (Exception error) {
                answer = "error " + error;
            }
            System.out.println(answer.replace('\n', ' '));
            System.out.flush();
        }
        System.exit(0);
    }

    private String obey(String[] words) throws Exception {
        switch (words[0]) {
            case "topic":
                return topic(Integer.parseInt(words[1]), Short.parseShort(words[2]));
            case "produce":
                return produce(Long.parseLong(words[1]));
            case "latency":
                return latency(Integer.parseInt(words[1]), Integer.parseInt(words[2]));
            case "leaders":
                return describe().stream()
                        .map(it -> Integer.toString(it.leader() == null ? -1 : it.leader().id()))
                        .collect(Collectors.joining(" "));
            case "whole":
                return whole(Integer.parseInt(words[1]));
            case "controller":
                return Integer.toString(
                        admin.describeMetadataQuorum().quorumInfo().get().leaderId());
            case "steady":
                steady = new Steady();
                return "";
            case "watch":
                steady.watch();
                return "";
            case "gap":
                return Double.toString(steady.gap() / 1e9);
            default:
                throw new IllegalArgumentException("no such command");
        }
    }

    /** What all clients have: those that lost a broker look for another one without long pauses. */
    private Properties common() {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", servers);
        properties.put("retry.backoff.ms", "20");
        properties.put("retry.backoff.max.ms", "100");
        properties.put("reconnect.backoff.ms", "20");
        properties.put("reconnect.backoff.max.ms", "100");
        return properties;
    }

    private KafkaProducer<byte[], byte[]> producer(String lingerMs) {
        Properties properties = common();
        properties.put("acks", "all");
        properties.put("enable.idempotence", "true");
        properties.put("linger.ms", lingerMs);
        return new KafkaProducer<>(
                properties, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private String topic(int count, short replicas) throws Exception {
        partitions = count;
        NewTopic topic = new NewTopic(TOPIC, count, replicas);
        topic.configs(Map.of("min.insync.replicas", "2"));
        admin.createTopics(List.of(topic)).all().get();
        return whole(replicas);
    }

    private List<TopicPartitionInfo> describe() throws Exception {
        return admin.describeTopics(List.of(TOPIC)).allTopicNames().get().get(TOPIC).partitions();
    }

    /** Waits until every partition has a leader and so many replicas in sync. */
    private String whole(int replicas) throws Exception {
        long until = System.nanoTime() + LIMIT_NS;
        while (true) {
            try {
                List<TopicPartitionInfo> found = describe();
                if (found.size() == partitions
                        && found.stream().allMatch(
                                it -> it.leader() != null && it.isr().size() == replicas)) {
                    return "";
                }
            } catch (java.util.concurrent.ExecutionException error) {
                // A broker that is just coming may not know the topic yet.
            }
            if (System.nanoTime() > until) {
                throw new TimeoutException("not every replica is in sync");
            }
            Thread.sleep(50);
        }
    }

    /** Writes records as fast as they are taken, with the producer's defaults; seconds. */
    private String produce(long count) throws Exception {
        byte[][] records = random();
        try (KafkaProducer<byte[], byte[]> producer = producer("5")) {
            producer.partitionsFor(TOPIC);
            long began = System.nanoTime();
            for (long number = 0; number < count; number++) {
                byte[] record = records[(int) (number % records.length)];
                producer.send(new ProducerRecord<>(TOPIC, record), (kept, error) -> note(error));
            }
            producer.flush();
            long took = System.nanoTime() - began;
            check();
            return Double.toString(took / 1e9);
        }
    }

    /**
     * Writes so many records a second, each at its time, while another thread reads them; 50th, 99th
     * and 100th percentile from a record's time to its receipt, in ms. The first quarter is to warm up.
     */
    private String latency(int rate, int seconds) throws Exception {
        int count = rate * seconds;
        Reader reader = new Reader(count);
        Thread reading = new Thread(reader);
        reading.start();
        reader.ready.await();
        byte[] body = random()[0];
        try (KafkaProducer<byte[], byte[]> producer = producer("0")) {
            producer.partitionsFor(TOPIC);
            long began = System.nanoTime() + 10_000_000;
            for (int number = 0; number < count; number++) {
                long at = began + number * 1_000_000_000L / rate;
                for (long left = at - System.nanoTime(); left > 0; left = at - System.nanoTime()) {
                    LockSupport.parkNanos(left);
                }
                byte[] record = body.clone();
                ByteBuffer.wrap(record).putLong(at).putInt(number);
                producer.send(
                        new ProducerRecord<>(TOPIC, number % partitions, null, record),
                        (kept, error) -> note(error));
            }
            producer.flush();
            check();
        }
        reading.join(TimeUnit.NANOSECONDS.toMillis(LIMIT_NS));
        long[] found = reader.found();
        Arrays.sort(found);
        return at(found, 0.50) + " " + at(found, 0.99) + " " + at(found, 1.0);
    }

    private static double at(long[] sorted, double rank) {
        int index = (int) Math.ceil(sorted.length * rank) - 1;
        return sorted[Math.max(index, 0)] / 1e6;
    }

    private final class Reader implements Runnable {
        final CountDownLatch ready = new CountDownLatch(1);
        private final int count;
        private final long[] latencies;
        private volatile int read;

        Reader(int count) {
            this.count = count;
            this.latencies = new long[count];
        }

        @Override
        public void run() {
            Properties properties = common();
            properties.put("enable.auto.commit", "false");
            List<TopicPartition> all = IntStream.range(0, partitions)
                    .mapToObj(number -> new TopicPartition(TOPIC, number))
                    .collect(Collectors.toCollection(ArrayList::new));
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(
                    properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                consumer.assign(all);
                consumer.seekToEnd(all);
                all.forEach(consumer::position);
                ready.countDown();
                long until = System.nanoTime() + LIMIT_NS;
                while (read < count && System.nanoTime() < until) {
                    var records = consumer.poll(Duration.ofMillis(100));
                    long now = System.nanoTime();
                    for (var record : records) {
                        ByteBuffer bytes = ByteBuffer.wrap(record.value());
                        long at = bytes.getLong();
                        latencies[bytes.getInt()] = now - at;
                        read++;
                    }
                }
            } catch (Exception error) {
                note(error);
                ready.countDown();
            }
        }

        long[] found() throws Exception {
            check();
            if (read < count) {
                throw new TimeoutException("read " + read + " of " + count + " records");
            }
            return Arrays.copyOfRange(latencies, count / 4, count);
        }
    }

    /** Writes a small record to every partition each 10 ms, for as long as the process lives. */
    private final class Steady {
        private final long[] acknowledged = new long[partitions];
        private final long[] gaps = new long[partitions];
        /** When the last record was sent that has been acknowledged. */
        private final long[] sent = new long[partitions];

        Steady() {
            Thread thread = new Thread(this::write);
            thread.setDaemon(true);
            thread.start();
        }

        private void write() {
            byte[] record = new byte[100];
            KafkaProducer<byte[], byte[]> producer = producer("0");
            for (long at = System.nanoTime(); ; at += 10_000_000) {
                for (long left = at - System.nanoTime(); left > 0; left = at - System.nanoTime()) {
                    LockSupport.parkNanos(left);
                }
                for (int number = 0; number < partitions; number++) {
                    int partition = number;
                    long now = System.nanoTime();
                    producer.send(
                            new ProducerRecord<>(TOPIC, partition, null, record),
                            (kept, error) -> acknowledged(partition, now, error));
                }
            }
        }

        private synchronized void acknowledged(int partition, long sentAt, Exception error) {
            note(error);
            if (error != null) {
                return;
            }
            long now = System.nanoTime();
            gaps[partition] = Math.max(gaps[partition], now - acknowledged[partition]);
            acknowledged[partition] = now;
            sent[partition] = Math.max(sent[partition], sentAt);
            notifyAll();
        }

        /** Forgets the gaps so far, once every partition takes records. */
        synchronized void watch() throws Exception {
            waitForAll(System.nanoTime());
            Arrays.fill(gaps, 0);
        }

        /** The longest time that a partition had nothing acknowledged, once all of them do again. */
        synchronized long gap() throws Exception {
            waitForAll(System.nanoTime());
            return Arrays.stream(gaps).max().orElse(0);
        }

        private void waitForAll(long since) throws Exception {
            long until = since + LIMIT_NS;
            while (Arrays.stream(sent).anyMatch(at -> at < since)) {
                check();
                long left = TimeUnit.NANOSECONDS.toMillis(until - System.nanoTime());
                if (left <= 0) {
                    throw new TimeoutException("a partition takes no records");
                }
                wait(left);
            }
        }
    }

    private void note(Exception error) {
        if (error != null) {
            failure.compareAndSet(null, error);
        }
    }

    private void check() throws Exception {
        if (failure.get() != null) {
            throw failure.get();
        }
    }

    /** Records of random letters; always the same ones. */
    private static byte[][] random() {
        Random random = new Random(1);
        byte[][] records = new byte[64][RECORD_BYTES];
        for (byte[] record : records) {
            for (int index = 0; index < record.length; index++) {
                record[index] = (byte) ('A' + random.nextInt(26));
            }
        }
        return records;
    }
}
