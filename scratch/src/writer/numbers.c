/* Writes numbers to a topic with librdkafka, and notes each acknowledgement.
 *
 *   numbers BROKERS TOPIC PARTITIONS INTERVAL_US FILE [NAME=VALUE ...]
 *
 * Every interval each partition gets its next number, as the text "librdkafka NUMBER". SIGTERM ends
 * the writing; what was sent is waited for. FILE gets a line for each record:
 *
 *   ack PARTITION OFFSET NUMBER TIME_US
 *   failed PARTITION NUMBER REASON
 *
 * and at the end "done RECORDS".
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CLIENT "librdkafka "

static FILE *acks;
static volatile sig_atomic_t stopping;

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static int64_t now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void delivered(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque) {
    (void)client;
    (void)opaque;
    char value[64];
    size_t length = message->len < sizeof value - 1 ? message->len : sizeof value - 1;
    memcpy(value, message->payload, length);
    value[length] = 0;
    const char *number = value + strlen(CLIENT);
    if (message->err)
        fprintf(acks, "failed %" PRId32 " %s %s\n", message->partition, number,
                rd_kafka_err2name(message->err));
    else
        fprintf(acks, "ack %" PRId32 " %" PRId64 " %s %" PRId64 "\n", message->partition,
                message->offset, number, now_us(CLOCK_REALTIME));
}

static void fatal_error(rd_kafka_t *client, int error, const char *reason, void *opaque) {
    (void)opaque;
    fprintf(stderr, "%" PRId64 " error %s: %s\n", now_us(CLOCK_REALTIME),
            rd_kafka_err2name((rd_kafka_resp_err_t)error), reason);
    if (error == RD_KAFKA_RESP_ERR__FATAL) {
        char text[512];
        rd_kafka_resp_err_t cause = rd_kafka_fatal_error(client, text, sizeof text);
        fprintf(stderr, "fatal: %s: %s\n", rd_kafka_err2name(cause), text);
        exit(3);
    }
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char text[512];
    if (rd_kafka_conf_set(conf, name, value, text, sizeof text) != RD_KAFKA_CONF_OK) {
        fprintf(stderr, "%s=%s: %s\n", name, value, text);
        exit(2);
    }
}

static rd_kafka_t *connect_to(const char *brokers, char **settings, int count) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", brokers);
    set(conf, "acks", "all");
    set(conf, "enable.idempotence", "true");
    for (int number = 0; number < count; number++) {
        char *value = strchr(settings[number], '=');
        if (!value) {
            fprintf(stderr, "not a setting: %s\n", settings[number]);
            exit(2);
        }
        *value = 0;
        set(conf, settings[number], value + 1);
    }
    rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    rd_kafka_conf_set_error_cb(conf, fatal_error);
    char text[512];
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof text);
    if (!client) {
        fprintf(stderr, "%s\n", text);
        exit(2);
    }
    return client;
}

/* The partition gets its number, as soon as there is room for it. */
static void append(rd_kafka_t *client, const char *topic, int partition, uint64_t number) {
    char value[64];
    int length = snprintf(value, sizeof value, CLIENT "%" PRIu64, number);
    for (;;) {
        rd_kafka_resp_err_t error = rd_kafka_producev(
            client, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
            RD_KAFKA_V_VALUE(value, (size_t)length), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
            RD_KAFKA_V_END);
        if (!error)
            return;
        if (error != RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            fprintf(stderr, "produce: %s\n", rd_kafka_err2name(error));
            exit(3);
        }
        rd_kafka_poll(client, 10);
    }
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "numbers BROKERS TOPIC PARTITIONS INTERVAL_US FILE [NAME=VALUE ...]\n");
        return 2;
    }
    const char *topic = argv[2];
    int partitions = atoi(argv[3]);
    int64_t interval = atoll(argv[4]);
    acks = fopen(argv[5], "w");
    if (!acks) {
        perror(argv[5]);
        return 2;
    }
    signal(SIGTERM, stop);
    rd_kafka_t *client = connect_to(argv[1], argv + 6, argc - 6);
    uint64_t number = 0;
    int64_t next = now_us(CLOCK_MONOTONIC);
    while (!stopping) {
        for (int partition = 0; partition < partitions; partition++)
            append(client, topic, partition, number);
        number++;
        next += interval;
        for (int64_t left; (left = next - now_us(CLOCK_MONOTONIC)) > 0;)
            rd_kafka_poll(client, (int)(left / 1000) + 1);
        rd_kafka_poll(client, 0);
        fflush(acks);
    }
    while (rd_kafka_flush(client, 1000) == RD_KAFKA_RESP_ERR__TIMED_OUT)
        fflush(acks);
    fprintf(acks, "done %" PRIu64 "\n", number * (uint64_t)partitions);
    fclose(acks);
    rd_kafka_destroy(client);
    return 0;
}
